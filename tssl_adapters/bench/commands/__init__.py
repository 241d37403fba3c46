"""How each command is called. Nothing here needs torch, so that ``--help`` answers at once."""
