"""`python -m data_prep VERB …`."""

import sys

from hoi_lightning import verbs

VERBS = {
    "demo": verbs.Verb("data_prep.mini.demo", "draw a mini HOI4D"),
    "check": verbs.Verb("data_prep.check", "what is in a data set, what its pairs will give and cost"),
    "build": verbs.Verb("data_prep.build", "HOI4D tree to HO3Pairs shards"),
    "verify": verbs.Verb("data_prep.verify", "check finished shards byte by byte"),
    "inspect": verbs.Verb("data_prep.inspect", "contact sheet, drops and distributions as one HTML page"),
    "leak": verbs.Verb("data_prep.leak", "does hand removal betray where the hand was?"),
    "latents": verbs.Verb("data_prep.latents", "cache an autoencoder's latents in additional shards"),
    "bench": verbs.Verb("data_prep.bench", "the build's CPU side against the codecs alone"),
}


def main(args: list[str] | None = None) -> int:
    """Run a verb; returns the exit status."""
    return verbs.run("data_prep", VERBS, sys.argv[1:] if args is None else args)


if __name__ == "__main__":
    sys.exit(main())
