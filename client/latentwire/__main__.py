"""`python -m latentwire`: the same as the `latentwire` command."""

from latentwire.cli import main

if __name__ == "__main__":
    main()
