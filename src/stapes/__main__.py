"""`python -m stapes` is the `stapes` program (`accelerate launch -m stapes …` needs it)."""

from .cli import main

if __name__ == "__main__":
    main()
