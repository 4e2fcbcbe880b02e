"""`python -m covidnet.cli`, as torchrun starts it."""

from covidnet.cli import main

main()
