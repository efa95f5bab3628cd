"""`python -m data_prep VERB …`."""

import sys

from hoi_lightning import verbs

VERBS = {
    "demo": "draw a mini HOI4D @ mini.demo",
    "build": "HOI4D tree to HO3Pairs shards",
    "latents": "cache an autoencoder's latents in the shards",
}


def main(args: list[str] | None = None) -> int:
    """Run a verb; returns the exit status."""
    return verbs.run("data_prep", VERBS, sys.argv[1:] if args is None else args)


if __name__ == "__main__":
    sys.exit(main())
