"""``python -m refquant``."""

from refquant.cli import main

main()
