"""``python -m ponita_ff`` is the command ``ponita-ff``."""

from ponita_ff.cli import main

if __name__ == "__main__":
    main()
