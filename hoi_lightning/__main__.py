"""`python -m hoi_lightning VERB …`; torch is imported only once a verb needs it."""

import sys

from hoi_lightning import verbs

FIT_VERBS = {
    "fit": "train a task: fit -c configs/masknet.yaml --data.shards DIR",
    "validate": "validation metrics of a checkpoint",
    "test": "test metrics of a checkpoint",
    "predict": "LightningCLI's predict",
}
VERBS = {
    "generate": verbs.Verb("hoi_lightning.generate", "paint hands into a folder of pictures"),
    "evaluate": verbs.Verb("hoi_lightning.evaluate", "metrics, grid and report.html on a split of HO3Pairs"),
    "export": verbs.Verb("hoi_lightning.export", "checkpoints to one folder of safetensors, open to diffusers"),
    "bench": verbs.Verb("hoi_lightning.bench", "do the figures of merit rise with what they should see?"),
}


def fit(args: list[str]) -> None:
    """LightningCLI, which has a parser of its own."""
    from hoi_lightning import cli

    cli.run(args)


def main(args: list[str] | None = None) -> int:
    """Run a verb; returns the exit status."""
    args = sys.argv[1:] if args is None else args
    if args and args[0] in FIT_VERBS:
        return verbs.guarded(lambda: fit(args))
    return verbs.run("hoi_lightning", VERBS, args, elsewhere=FIT_VERBS)


if __name__ == "__main__":
    sys.exit(main())
