"""Random models read by sonde and by plain hooks: no difference may pass without a word."""
