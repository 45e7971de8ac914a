"""What the sub-commands of `albef` do with their arguments; each returns the exit code.

Imports wait until a command runs, so that --help and mistakes are instant.
"""

import sys

from albef_jax.errors import UserError


def run_train(args, overrides):
    """`albef train`."""
    from albef_jax.config import load_config

    config = load_config(args.config, overrides)
    from albef_jax.train import train

    with processes_of(args):
        train(config, args.workdir, args.profile, args.init)
    return 0


def run_evaluate(args, overrides):
    """`albef evaluate`."""
    from albef_jax.config import load_config
    from albef_jax.evaluate import evaluate

    evals = load_config(args.config).evals if args.config else None
    with processes_of(args):
        evaluate(args.workdir, args.step, overrides, evals)
    return 0


def run_plan(args, overrides):
    """`albef plan`: 0 if the step fits."""
    from albef_jax.config import load_config
    from albef_jax.plan import plan

    config = load_config(args.config, overrides)
    result = plan(config, args.target, args.hbm, args.examples, args.suggest)
    return 0 if result["fits"] else 1


def run_bench(args, overrides):
    """`albef bench`."""
    from albef_jax.config import load_config

    config = load_config(args.config, overrides)
    if args.input:
        from albef_jax.bench_input import bench_input

        bench_input(config, args.photos, args.mfu)
    elif args.retrieval:
        from albef_jax.bench_retrieval import bench_retrieval

        with processes_of(args):
            bench_retrieval(config, args.images, args.texts, args.k, args.batch_size)
    else:
        from albef_jax.bench import bench

        with processes_of(args):
            bench(config, args.steps)
    return 0


def run_import(args, overrides):
    """`albef import`: the sentence about the tokenizer comes last, where it is seen."""
    from etils import epath

    from albef_jax.config import load_config
    from albef_jax.weights.importer import import_file

    if not args.config:
        named(args, overrides)  # nothing may be left over
    config = load_config(args.config, overrides) if args.config else None
    print(import_file(args.path, args.out, args.kind, args.heads, args.image_size,
                      args.tokenizer, config))
    if not (epath.Path(args.out) / "tokenizer").is_dir():
        print(f"{args.out} has no tokenizer, which everything with text needs: import with "
              "--tokenizer bert-base-uncased, or the folder of the one it was trained with",
              file=sys.stderr)
    return 0


def run_export(args, rest):
    """`albef export`."""
    from albef_jax.weights.export import export

    print(export(**named(args, rest)))
    return 0


def run_embed(args, rest):
    """`albef embed`."""
    from albef_jax.inference.commands import embed

    embed(**named(args, rest))
    return 0


def run_search(args, rest):
    """`albef search`."""
    from albef_jax.inference.commands import search

    search(**named(args, rest))
    return 0


def run_answer(args, rest):
    """`albef answer`."""
    from albef_jax.inference.commands import answer

    answer(**named(args, rest))
    return 0


def run_explain(args, rest):
    """`albef explain`."""
    from albef_jax.inference.commands import explain

    explain(**named(args, rest))
    return 0


def run_report(args, rest):
    """`albef report`."""
    from albef_jax.report import report

    print(report(**named(args, rest)))
    return 0


def run_data_check(args, rest):
    """`albef data check`: 0 if training would start."""
    from albef_jax.config import load_config
    from albef_jax.data.check import check

    if args.config:
        config = load_config(args.config, rest)
    else:
        config = named(args, rest)["config"]  # None, and nothing may be left over
    problems = check(args.manifests, args.image_roots, config)
    for problem in problems:
        print(f"albef: {problem}", file=sys.stderr)
    if not problems:
        print("training would start")
    return 2 if problems else 0


def run_data_shard(args, rest):
    """`albef data shard`."""
    from albef_jax.data.check import source_block
    from albef_jax.data.shard import shard
    from albef_jax.data.sources import make_source

    named(args, rest)  # nothing may be left over
    source = make_source(source_block(args.source, args.image_roots))
    print(shard(source, args.out, args.short_side))
    return 0


def processes_of(args):
    """This process as one of several, where there are several: a context manager."""
    from albef_jax.processes import joined

    return joined(args.coordinator, args.processes, args.process, args.process_timeout,
                  args.hang_timeout)


def named(args, rest):
    """The arguments by name, for a command without a config.

    Raises:
      UserError: there are others.
    """
    if rest:
        raise UserError(f"The argument {rest[0]!r} is not understood; see albef --help.")
    return {name: value for name, value in vars(args).items() if name != "run"}
