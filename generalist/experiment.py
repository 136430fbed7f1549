"""A whole run: prepare, train, evaluate. Every part is skipped when it is done already."""

from rich.console import Console

from generalist.config import Config
from generalist.experts import record_missing
from generalist.run import check_same_settings


def run(config: Config, command: list[str], console: Console) -> None:
    """Records what is missing, trains to `training.steps`, and scores the weights.

    Args:
        command: what the user typed, kept in the results file.

    Raises:
        ValueError, ImportError, OSError, FloatingPointError: with a message for the user.
        KeyboardInterrupt: stopped; everything finished so far is on disk.
    """
    check_same_settings(config)
    record_missing(config, console)
    console.print("loading JAX ...", highlight=False)
    from generalist.prepare import prepare
    from generalist.training.loop import Interrupted, train

    prepared = prepare(config, console)
    try:
        train(
            config,
            prepared.tokenizers.model_spec(),
            prepared.batch_spec,
            prepared.iterator,
            prepared.names,
            console,
            prepared.encoder.compiled() if prepared.encoder is not None else None,
        )
    except Interrupted as interrupted:
        console.print(str(interrupted), highlight=False)
        raise KeyboardInterrupt from interrupted
    from generalist.eval.run import evaluate

    evaluate(config, command, console)
