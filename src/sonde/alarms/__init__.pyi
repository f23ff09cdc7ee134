from sonde.alarms.combination import bonferroni as bonferroni
from sonde.alarms.combination import cauchy as cauchy
from sonde.alarms.combination import simes as simes
from sonde.alarms.combination import twice_mean as twice_mean
from sonde.alarms.cusum import Cusum as Cusum
from sonde.alarms.eprocess import ChangeDetector as ChangeDetector
from sonde.alarms.eprocess import EProcess as EProcess
from sonde.alarms.eprocess import bet as bet
from sonde.alarms.eprocess import mixture_wealth as mixture_wealth
from sonde.alarms.fusion import FusedScore as FusedScore
from sonde.alarms.fusion import fuse as fuse
from sonde.alarms.fusion import surprise as surprise

__all__: list[str]
