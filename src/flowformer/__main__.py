"""`python -m flowformer`: the command line."""

from flowformer.cli import main

if __name__ == "__main__":
    main()
