"""`python -m hlo` is `hlo`."""

from hlo.cli import main

if __name__ == "__main__":
    main()
