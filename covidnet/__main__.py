"""`python -m covidnet`, as torchrun starts it."""

from covidnet.cli import main

main()
