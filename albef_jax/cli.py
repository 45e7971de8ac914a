"""The command `albef`: thin sub-commands over the functions that do the work."""

import argparse
import contextlib
import importlib
import os
import sys
import traceback

from albef_jax.errors import INTERRUPTED, CodeError, UserError

CONFIG = "FILE.py[:variant]"
SOURCES = "a .json file, tfds:NAME:SPLIT or scenes:LEVEL:SPLIT"
PROCESSES = ("coordinator", "processes", "process", "timeout", "hang_timeout")  # of `joined`


def main(argv=None):
    """Runs a command; returns the exit code: 0 done, 2 a sentence for the user.

    A Ctrl-C that gives up (the second one, or before training) ends the process with 130, output
    that nobody reads any more with 141, as of other programs.
    """
    if argv is None:
        use_huge_pages()
        for stream in (sys.stdout, sys.stderr):  # a locale may lack letters of captions
            stream.reconfigure(errors="backslashreplace")
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    try:
        code = args.run(args, rest) or 0
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"albef: {error}", file=sys.stderr)
        if isinstance(error, CodeError):
            print("".join(traceback_of(error)), end="", file=sys.stderr)
        return 2
    except OSError as error:
        if not output_fails():
            raise
        if isinstance(error, BrokenPipeError):  # `albef data check | head`
            return 141
        print(f"albef: the output cannot be written ({error.strerror}); make room, or send it "
              "elsewhere.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr, flush=True)
        # Not by returning: threads of an interrupted save would hold up the exit for minutes.
        os._exit(130)


def traceback_of(error):
    """Lines of the traceback of a `CodeError`, from the user's file on."""
    cause = error.__cause__
    frames = cause.__traceback__
    while frames and frames.tb_frame.f_code.co_filename != error.path:
        frames = frames.tb_next
    return traceback.format_exception(type(cause), cause, frames)


def output_fails():
    """Whether the standard output takes nothing more; then it is silenced, for the exit."""
    try:
        print(flush=True)  # what failed may not be in a buffer any more
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def use_huge_pages():
    """Starts this process over once, with huge pages for malloc where the kernel has them.

    On a CPU every step allocates its temporaries anew; with small pages the kernel spends a tenth
    of the step on page faults. The allocator reads the setting only when a process starts; one
    that the user chose stays.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def build_parser():
    """All sub-commands and their flags."""
    parser = argparse.ArgumentParser(
        prog="albef", description="Vision-language pre-training in JAX.",
        epilog="Any config value can be set with --config.key=value.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (add_training, add_inference, add_weights, add_data, add_measuring):
        add(commands)
    return parser


# Each group of sub-commands, and what those do that need more than a call. Imports wait until one
# runs, so that --help and mistakes are instant.


def add_training(commands):
    """train, profile, evaluate, report."""
    train = command(commands, "train", calling("albef_jax.train:train", lambda done: 0),
                    "train, or resume what a work directory holds")
    train.add_argument("--config", required=True, metavar=CONFIG)
    train.add_argument("--workdir", required=True, metavar="DIR")
    train.add_argument("--profile", type=step_range, metavar="N:M",
                       help="trace steps N to M into DIR/profile")
    train.add_argument("--init", metavar="DIR",
                       help="start from the weights of this work directory or export")
    add_processes(train)

    profile = command(commands, "profile", calling("albef_jax.run.profiling:request"),
                      "have a training that runs trace its next steps")
    profile.add_argument("workdir", metavar="WORKDIR")
    profile.add_argument("--steps", type=whole(1), default=5, metavar="N",
                         help="how many (%(default)s)")

    evaluate = command(commands, "evaluate", run_evaluate, "run the evaluators of a work directory")
    evaluate.add_argument("workdir", metavar="WORKDIR")
    evaluate.add_argument("--step", type=int, help="checkpoint to use (the latest)")
    evaluate.add_argument("--config", metavar=CONFIG,
                          help="run the evaluators of this config instead of the run's own")
    add_processes(evaluate)

    report = command(commands, "report", calling("albef_jax.report:report"),
                     "write report.html: numbers, examples, curves")
    report.add_argument("workdir", metavar="WORKDIR")
    report.add_argument("--against", nargs="+", default=(), metavar="FILE.csv",
                        help="draw these curves under the run's own, such as docs/curves/demo.csv, "
                             "or those of another work directory")


def run_evaluate(args, overrides):
    """`albef evaluate`; overrides are of the run's config."""
    from albef_jax.evaluate import evaluate

    other = config_of(args, ())
    with processes_of(vars(args)):
        evaluate(args.workdir, args.step, overrides, other.evals if other else None)


def add_inference(commands):
    """embed, search, score, explain, answer, caption, app, features."""
    place = "albef_jax.inference.commands"
    embed = command(commands, "embed", calling(f"{place}:embed"),
                    "features of a folder of images or a manifest")
    add_model(embed, "a folder of images or a manifest .json")
    embed.add_argument("--out", required=True, metavar="FILE.npz")

    search = command(commands, "search", calling(f"{place}:search"),
                     "find images for a text, texts for an image, or products")
    add_model(search, "a folder of images, a manifest .json, or an .npz file of embed")
    search.add_argument("text", nargs="?", type=written, help="the query; of products a title")
    search.add_argument("--product", metavar="ID", help="query with a product of the manifest")
    search.add_argument("--modalities", default="", metavar="LETTERS",
                        help="of products, what is compared, such as ti: title and image (all)")
    search.add_argument("--image", metavar="FILE", help="query with an image instead of a text")
    search.add_argument("-k", type=whole(1), default=5, help="results (%(default)s)")
    search.add_argument("--rerank", type=whole(1), default=0, metavar="N",
                        help="let the matching head reorder the N most similar")

    score = command(commands, "score", calling("albef_jax.inference.score:score"),
                    "how well each text of a manifest fits its image; goes on where it stopped")
    add_model(score, "a manifest, a .tar of pairs, or a short form such as scenes:demo:heldout")
    score.add_argument("--out", required=True, metavar="FILE.jsonl")
    score.add_argument("--regions", nargs="+", default=(), metavar="PATH",
                       help="files and folders with the regions of the images, for ImageBERT")

    explain = command(commands, "explain", calling(f"{place}:explain"),
                      "a picture of where a model looks for a text")
    explain.add_argument("workdir", metavar="WORKDIR", help="of a run, or an exported model")
    explain.add_argument("--image", required=True, metavar="FILE")
    explain.add_argument("--text", required=True, type=written)
    explain.add_argument("--out", required=True, metavar="FILE.png")
    explain.add_argument("--mode", choices=["itm", "itc"], default="itm",
                         help="matching head, word by word, or similarity (%(default)s)")
    explain.add_argument("--layer", type=int, default=-1, metavar="N",
                         help="fusion layer (itm) or ViT block (itc) to look at")
    add_text_length(explain)

    answer = command(commands, "answer", calling(f"{place}:answer"),
                     "answer a question about an image")
    answer.add_argument("workdir", metavar="WORKDIR", help="of a vqa run, or an exported model")
    answer.add_argument("--image", required=True, metavar="FILE")
    answer.add_argument("--question", required=True, type=written)
    answer.add_argument("--answers", metavar="FILE.json",
                        help="a list of answers to choose from; without it the model writes")
    answer.add_argument("--k", type=whole(1), default=128, metavar="N",
                        help="answers of the list that are read as a whole (%(default)s)")
    add_text_length(answer)

    caption = command(commands, "caption", calling(f"{place}:caption"),
                      "write captions of an image")
    caption.add_argument("workdir", metavar="WORKDIR",
                         help="of a run on a source of kind captions, or an exported model")
    caption.add_argument("--image", required=True, metavar="FILE")
    for writes in answer, caption:
        writes.add_argument("--beams", type=whole(1), default=3, metavar="N",
                            help="texts that are written in parallel (%(default)s)")

    app = command(commands, "app", calling("albef_jax.app:app"),
                  "look at a model in the browser, on this machine")
    app.add_argument("workdir", metavar="WORKDIR", help="of a run, or an exported model")
    app.add_argument("--data", metavar="DATA",
                     help="what is searched: a folder of images, a manifest .json, an .npz file of "
                          "embed; of products and regions a source in short form")
    app.add_argument("--image-root", metavar="PATH", help="folder or .tar of a manifest's images")
    app.add_argument("--host", default="127.0.0.1",
                     help="whom it answers; 0.0.0.0: everybody (%(default)s)")
    app.add_argument("--port", type=whole(0), default=7860, help="0: any (%(default)s)")

    features = command(commands, "features", calling("albef_jax.inference.extract:extract"),
                       "features of images, videos or sounds of products, or regions of images "
                       "of pairs; goes on where it stopped")
    features.add_argument("kind", choices=["image", "regions", "video", "audio"])
    features.add_argument("source", metavar="DATA", help="a folder of files, or a manifest")
    features.add_argument("--out", required=True, metavar="DIR",
                          help="a file for each product, named after it")
    features.add_argument("--model", metavar="WORKDIR",
                          help="whose ViT encodes images and frames (pixels)")
    for name, default, what in (("grid", 6, "regions of an image, a side"),
                                ("patch", 16, "pixels of a region or of a frame, a side"),
                                ("frames", 16, "of a clip"),
                                ("classes", 1600, "clusters that are classes of 'regions'")):
        features.add_argument(f"--{name}", type=whole(1), default=default, metavar="N",
                              help=f"{what} (%(default)s)")
    features.add_argument("--merge", type=whole(0), default=0, metavar="N",
                          help="how many 'regions' are left when the likest neighbours become one")
    features.add_argument("--image-roots", nargs="+", default=(), metavar="PATH",
                          help="folders and .tar files of a manifest (its own folder)")


def add_model(parser, what):
    """Arguments of the commands that use a trained model; they are passed on by name."""
    parser.add_argument("workdir", metavar="WORKDIR", help="of a run, or an exported model")
    parser.add_argument("source", metavar="DATA", help=what)
    parser.add_argument("--image-root", metavar="PATH",
                        help="folder or .tar with the images of a manifest (its own folder)")
    parser.add_argument("--weights", default="online", help="online (the default) or momentum")
    parser.add_argument("--dtype", default="float32", help="float32 (the default) or bfloat16")
    parser.add_argument("--batch-size", type=whole(1), default=32, metavar="N",
                        help="images or texts at once (%(default)s)")
    add_text_length(parser)


def add_text_length(parser):
    """How much of a text is read."""
    parser.add_argument("--text-length", type=whole(2), metavar="N",
                        help="tokens of a text that are read (as in evaluation)")


def add_weights(commands):
    """import, export, push, pull."""
    load = command(commands, "import", run_import, "make a work directory of published weights")
    load.add_argument("path", metavar="FILE", help="a .pth, or what albef export wrote")
    load.add_argument("--out", required=True, metavar="WORKDIR")
    load.add_argument("--as", dest="kind", metavar="TASK",
                      help="what published weights are for, such as vqa (seen from the tensors)")
    load.add_argument("--heads", type=whole(1), metavar="N", help="attention heads (12)")
    load.add_argument("--image-size", type=whole(1), metavar="N",
                      help="interpolate the position embeddings to N pixels")
    load.add_argument("--tokenizer", metavar="NAME_OR_FOLDER",
                      help="saved with the model; bert-base-uncased for published weights")
    load.add_argument("--config", metavar=CONFIG,
                      help="a config for these weights: heads, resolution, evaluators")
    load.add_argument("--format", choices=["salesforce"], default="salesforce",
                      help="of the tensors in a .pth (%(default)s)")

    export = command(commands, "export", calling("albef_jax.weights.export:export"),
                     "write weights for use elsewhere")
    export.add_argument("workdir", metavar="WORKDIR")
    export.add_argument("--format", required=True, dest="form",
                        choices=["salesforce", "scale", "imagebert", "safetensors", "jax"])
    export.add_argument("--out", required=True, metavar="PATH",
                        help="a new .pth for salesforce (ALBEF), scale and imagebert, a new "
                        "folder for safetensors and jax (functions for plain JAX)")
    export.add_argument("--weights", choices=["online", "momentum"], default="online",
                        help="%(default)s")
    export.add_argument("--step", type=int, help="checkpoint to use (the latest)")

    push = command(commands, "push", calling("albef_jax.share:push"),
                   "upload a run's model to the Hugging Face hub")
    push.add_argument("workdir", metavar="WORKDIR")
    push.add_argument("repo", metavar="ORG/NAME[@BRANCH]")
    push.add_argument("--weights", choices=["online", "momentum"], default="online",
                      help="%(default)s")
    push.add_argument("--step", type=int, help="checkpoint to use (the latest)")
    push.add_argument("--private", action="store_true", help="if it makes the repository")

    pull = command(commands, "pull", calling("albef_jax.share:pull"),
                   "download a model that push uploaded")
    pull.add_argument("repo", metavar="ORG/NAME[@REVISION]")
    pull.add_argument("--out", required=True, metavar="FOLDER", help="a new folder")


def run_import(args, overrides):
    """`albef import`: the sentence about the tokenizer comes last, where it is seen."""
    config = config_of(args, overrides)
    from etils import epath

    from albef_jax.run.workdir import read_config
    from albef_jax.tasks import task_class
    from albef_jax.weights.importer import import_file

    print(import_file(args.path, args.out, args.kind, args.heads, args.image_size,
                      args.tokenizer, config))
    config = read_config(epath.Path(args.out))
    fields = task_class(config.task).fields(config).values()
    if (any(field.needs_tokenizer for field in fields)
            and not (epath.Path(args.out) / "tokenizer").is_dir()):
        print(f"{args.out} has no tokenizer, which everything with text needs: import with "
              "--tokenizer bert-base-uncased, or the folder of the one it was trained with",
              file=sys.stderr)


def add_data(commands):
    """data check, data shard, data clean."""
    data = commands.add_parser("data", help="look at data before training does")
    data = data.add_subparsers(required=True, metavar="COMMAND")
    look = command(data, "check", run_data_check,
                   "count what is there, find what is broken or there twice")
    look.add_argument("manifests", nargs="*", metavar="MANIFEST", help=SOURCES)
    look.add_argument("--config", metavar=CONFIG,
                      help="check the sources of this config, by its limits")
    shards = command(data, "shard", run_data_shard,
                     "write image-text pairs as ArrayRecord, with smaller images")
    shards.add_argument("source", metavar="MANIFEST", help=SOURCES)
    shards.add_argument("--out", required=True, metavar="DIR", help="read it as tfds:DIR")
    shards.add_argument("--short-side", type=whole(1), default=288, metavar="N",
                        help="pixels to which larger images are resized (%(default)s)")
    cleaned = command(data, "clean", run_data_clean,
                      "leave out pairs that teach little, rule by rule, and show some of them; "
                      "--RULE=VALUE sets the threshold of a rule, or leaves it out with 'off'")
    cleaned.add_argument("manifest", metavar="MANIFEST", help="may have columns of `albef score`")
    cleaned.add_argument("--out", required=True, metavar="FILE.json")
    for parser in (look, shards):
        parser.add_argument("--regions", nargs="+", default=(), metavar="PATH",
                            help="files and folders with the regions of the images")
    for parser in (look, shards, cleaned):
        parser.add_argument("--image-roots", nargs="+", default=(), metavar="PATH",
                            help="folders and .tar files with the images (the manifest's own "
                                 "folder)")


def run_data_check(args, overrides):
    """`albef data check`: 0 if training would start."""
    config = config_of(args, overrides)
    from albef_jax.preflight.check import check

    problems = check(args.manifests, args.image_roots, config, args.regions)
    for problem in problems:
        print(f"albef: {problem}", file=sys.stderr)
    if not problems:
        print("training would start")
    return 2 if problems else 0


def run_data_clean(args, rest):
    """`albef data clean`."""
    from albef_jax.data.clean import read_thresholds
    from albef_jax.preflight.clean import clean

    clean(args.manifest, args.out, args.image_roots, read_thresholds(rest))


def run_data_shard(args, rest):
    """`albef data shard`."""
    nothing_left(rest)
    from albef_jax.data.shard import shard
    from albef_jax.data.sources import make_source, source_block

    source = make_source(source_block(args.source, args.image_roots, args.regions))
    print(shard(source, args.out, args.short_side))


def add_measuring(commands):
    """plan, bench."""
    run_plan = calling("albef_jax.preflight.plan:plan", lambda result: 0 if result["fits"] else 1)
    plan = command(commands, "plan", run_plan, "memory, time and cost of a config on a TPU slice, "
                   "GPUs or this CPU, before it runs")
    plan.add_argument("--config", required=True, metavar=CONFIG)
    plan.add_argument("--target", required=True,
                      help="v5e:2x4, v6e:4x4, v4:2x2x2, v5p:2x2x2, gpu[:N] or cpu[:N]")
    plan.add_argument("--hbm", type=memory_size, metavar="SIZE",
                      help="memory of a device, such as 16GiB, if not the target's")
    plan.add_argument("--examples", type=whole(1), default=0, metavar="N",
                      help="examples in an epoch (config.data.examples)")
    plan.add_argument("--suggest", action="store_true",
                      help="if it does not fit, plan it again with what should make it fit")
    plan.add_argument("--by-op", action="store_true",
                      help="what each part of the model moves, multiplies and takes")
    plan.add_argument("--json", metavar="FILE", help="write what each part takes")
    plan.add_argument("--against", metavar="FILE",
                      help="compare with a plan that --json wrote")

    bench = command(commands, "bench", run_bench, "measure the training step of a config")
    bench.add_argument("--config", required=True, metavar=CONFIG)
    bench.add_argument("--steps", type=whole(1), default=10, help="steps to time (%(default)s)")
    bench.add_argument("--breakdown", action="store_true",
                       help="also measure where the time goes, by part of the model")
    bench.add_argument("--json", default="", metavar="FILE", help="write what was measured")
    bench.add_argument("--input", action="store_true",
                       help="measure the input pipeline instead, both engines on 1 and 2 cores")
    bench.add_argument("--photos", default="", metavar="DIR",
                       help="a folder of JPEG files for --input (noise like photographs)")
    bench.add_argument("--mfu", type=float, default=0.4,
                       help="utilisation of the devices that --input compares with (%(default)s)")
    bench.add_argument("--retrieval", action="store_true",
                       help="measure the evaluation of retrieval instead, on noise:")
    for name, default, what in (
            ("images", None, "how many (1000; 100 where every pair is scored)"),
            ("texts", None, "how many (5000; 500 where every pair is scored)"),
            ("k", 128, "candidates of each query (%(default)s)"),
            ("batch-size", 64, "of the evaluator (%(default)s)")):
        bench.add_argument(f"--{name}", type=whole(1), default=default, metavar="N", help=what)
    add_processes(bench)


def run_bench(args, overrides):
    """`albef bench`: the step, `--input` or `--retrieval`."""
    config = config_of(args, overrides)
    if args.input:
        from albef_jax.preflight.bench_input import bench_input

        bench_input(config, args.photos, args.mfu)
        return
    with processes_of(vars(args)):
        if args.retrieval:
            from albef_jax.preflight.bench_retrieval import bench_retrieval

            bench_retrieval(config, args.images, args.texts, args.k, args.batch_size)
        else:
            from albef_jax.preflight.bench import bench

            bench(config, args.steps, args.breakdown, args.json)


# What the sub-commands share.


def command(commands, name, run, text):
    """A sub-command; `run(args, rest)` gets what is left over too, and returns the exit code."""
    parser = commands.add_parser(name, help=text)
    parser.set_defaults(run=run)
    return parser


def say(result):
    """Prints what a function returns, if it does."""
    if result is not None:
        print(result)


def calling(function, then=say):
    """A `run` that passes the arguments on by name, with the config that --config names.

    Args:
      function: 'package.module:function'. then: called with what it returns, gives the exit code.
    """
    def run(args, rest):
        values = {key: value for key, value in vars(args).items() if key not in ("run", *PROCESSES)}
        if "config" in values:
            values["config"] = config_of(args, rest)
        else:
            nothing_left(rest)
        module, _, name = function.partition(":")
        call = getattr(importlib.import_module(module), name)
        with processes_of(vars(args)):
            result = call(**values)
        return then(result)

    return run


def config_of(args, overrides):
    """The config that --config names, with overrides; None, and nothing is left over, without."""
    if args.config is None:
        return nothing_left(overrides)
    from albef_jax.config import load_config

    return load_config(args.config, overrides)


def nothing_left(rest):
    """Refuses arguments that nobody understood.

    Raises:
      UserError: there are any.
    """
    if rest:
        raise UserError(f"The argument {rest[0]!r} is not understood; see albef --help.")


def add_processes(parser):
    """Arguments of the commands that several processes run together; see `processes_of`."""
    group = parser.add_argument_group(
        "several processes", "found in a TPU pod, SLURM and Open MPI; elsewhere give all three")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    group.add_argument("--processes", type=whole(1), metavar="N", help="how many there are")
    group.add_argument("--process", type=int, metavar="I", help="which one this is, from 0")
    group.add_argument("--process-timeout", dest="timeout", type=whole(1), default=100,
                       metavar="SECONDS",
                       help="without a sign of life from one, all end (%(default)s)")
    group.add_argument("--hang-timeout", type=whole(0), default=1800, metavar="SECONDS",
                       help="without a step or evaluation batch, all end (%(default)s; 0: never)")


def processes_of(arguments):
    """This process as one of several, where there are several: a context manager."""
    if not arguments.keys() >= {*PROCESSES}:
        return contextlib.nullcontext()
    from albef_jax.parallel.processes import joined

    return joined(**{name: arguments[name] for name in PROCESSES})


def whole(least):
    """A type of arguments: a whole number of at least so much."""
    def number(text):
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least {least}")
        return int(text)

    return number


def written(text):
    """A text that a person has written: UTF-8, whatever the locale says, and not empty."""
    try:
        text = os.fsencode(text).decode()
    except UnicodeError:
        raise argparse.ArgumentTypeError("the text is not UTF-8; set the terminal to it") from None
    if not text.strip():
        raise argparse.ArgumentTypeError("the text is empty; write one")
    return text


def memory_size(text):
    """Bytes of a text such as '16GiB' or '80GB'."""
    unit = 2**30 if text.endswith("GiB") else 10**9
    number = float(text.removesuffix("GiB").removesuffix("GB"))
    if number <= 0 or not text.endswith("B"):
        raise ValueError(text)
    return number * unit


def step_range(text):
    """'N:M' as two positive numbers in order."""
    first, last = (int(part) for part in text.split(":"))
    if not 1 <= first <= last:
        raise ValueError(text)
    return first, last
