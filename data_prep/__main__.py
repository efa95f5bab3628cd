"""`python -m data_prep VERB …`."""

import sys

from hoi_lightning import verbs

VERBS = {
    "demo": verbs.Verb("data_prep.mini.demo", "draw a mini HOI4D"),
    "build": verbs.Verb("data_prep.build", "HOI4D tree to HO3Pairs shards"),
    "latents": verbs.Verb("data_prep.latents", "cache an autoencoder's latents in the shards"),
}


def main(args: list[str] | None = None) -> int:
    """Run a verb; returns the exit status."""
    return verbs.run("data_prep", VERBS, sys.argv[1:] if args is None else args)


if __name__ == "__main__":
    sys.exit(main())
