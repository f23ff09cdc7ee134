"""The script that completes commands and flags in a shell, for ``sonde completion SHELL``."""


def script(shell: str, known: dict[str, list[str]]) -> str:
    """Return the completion script of a shell.

    Parameters
    ----------
    shell : {"bash", "zsh", "fish"}
    known : dict of str to list of str
        Flags by command.
    """
    if shell == "fish":
        return _fish(known)
    bash = _bash(known)
    return f"autoload -U +X bashcompinit && bashcompinit\n{bash}" if shell == "zsh" else bash


def _firsts(known: dict[str, list[str]]) -> list[str]:
    return sorted({word.partition(" ")[0] for word in known} | {"more", "help"})


def _bash(known: dict[str, list[str]]) -> str:
    cases = [f'    "{word}") found="{" ".join(flags)}" ;;' for word, flags in known.items()]
    seconds: dict[str, list[str]] = {}
    for word in known:
        first, _, second = word.partition(" ")
        if second:
            seconds.setdefault(first, []).append(second)
    behind = [f'    {first}) seconds="{" ".join(more)}" ;;' for first, more in seconds.items()]
    lines = [
        "_sonde() {",
        '  local word="${COMP_WORDS[COMP_CWORD]}" found="" seconds=""',
        "  if [ $COMP_CWORD -eq 1 ]; then",
        f'    COMPREPLY=($(compgen -W "{" ".join(_firsts(known))}" -- "$word")); return',
        "  fi",
        '  case "${COMP_WORDS[1]}" in',
        *behind,
        "  esac",
        '  if [ $COMP_CWORD -eq 2 ] && [ -n "$seconds" ]; then',
        '    COMPREPLY=($(compgen -W "$seconds" -- "$word"))',
        "    [ ${#COMPREPLY[@]} -gt 0 ] && return",
        "  fi",
        '  local asked="${COMP_WORDS[1]}"',
        '  case " $seconds " in *" ${COMP_WORDS[2]} "*) asked="$asked ${COMP_WORDS[2]}" ;; esac',
        '  case "$asked" in',
        *cases,
        "  esac",
        '  case "$word" in',
        '    -*) COMPREPLY=($(compgen -W "$found" -- "$word")) ;;',
        '    *) COMPREPLY=($(compgen -f -- "$word")) ;;',
        "  esac",
        "}",
        "complete -o filenames -F _sonde sonde",
    ]
    return "\n".join(lines)


def _fish(known: dict[str, list[str]]) -> str:
    lines = [f"complete -c sonde -n __fish_use_subcommand -a '{' '.join(_firsts(known))}'"]
    for word, flags in known.items():
        first, _, second = word.partition(" ")
        seen = f"__fish_seen_subcommand_from {first}"
        if second:
            lines.append(f"complete -c sonde -n '{seen}' -a {second}")
            continue
        lines += [f"complete -c sonde -n '{seen}' -l {f[2:]}" for f in flags if f.startswith("--")]
    return "\n".join(lines)
