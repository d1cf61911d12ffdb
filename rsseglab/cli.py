"""The command line: ``rsseglab quickstart | data | train | predict | evaluate | compare | assignments | ...``.

Nothing heavy is imported before a command is known, so that ``rsseglab --help`` answers at once. Every error that a
user can mend is a `UserError`: one line on standard error and exit code 2; Ctrl-C is exit code 130.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rsseglab import __version__
from rsseglab.errors import UserError
from rsseglab.experiments.presets import check_first_stage, load_preset, preset_names

if TYPE_CHECKING:
    from rsseglab.inference.predict import Prediction
    from rsseglab.scenes.scene import LabelClass, Scene


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    parser = _parser()
    args, rest = parser.parse_known_args(arguments)
    try:
        if getattr(args, "preset", None):
            _take_preset(args)
            args, rest = parser.parse_known_args(arguments)
    except UserError as error:
        print(f"rsseglab: {error}", file=sys.stderr)
        return 2
    if args.run is _scale:
        args.options = rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        args.run(args)
    except (UserError, ValueError) as error:
        # The spatial engine knows nothing of this house; its errors are as plain as ours.
        if not isinstance(error, UserError) and type(error).__name__ != "SpatialError":
            raise
        # A reading process wraps the message in its own traceback: the last line is ours.
        line = str(error).strip().splitlines()[-1].removeprefix("rsseglab.errors.UserError: ")
        print(f"rsseglab: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        remedy = "; the same command with --resume goes on." if "resume" in args else "; no half-written file is left."
        print(f"\nrsseglab: interrupted{remedy}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        print(f"rsseglab: {error}; check the path, the permissions and the free space.", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rsseglab", description="Semantic segmentation of whole remote sensing scenes."
    )
    parser.add_argument("--version", action="version", version=f"rsseglab {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    first = (_add_quickstart, _add_data, _add_train, _add_predict, _add_evaluate, _add_submit, _add_points)
    for add in (*first, _add_own, _add_compare, _add_ablate, _add_tables, _add_assignments, _add_scale):
        add(commands)
    return parser


if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def _command(commands: "_Commands", name: str, help: str, run: object) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=help, description=help, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.set_defaults(run=run)
    return parser


def _add_data_options(parser: argparse.ArgumentParser, default: str | None) -> None:
    parser.add_argument(
        "--data",
        default=default,
        metavar="NAME",
        help="data set: a name of 'rsseglab data list', NAME:PROTOCOL to train by other splits, or a manifest's path",
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=None,
        metavar="FOLDER",
        help="where its files are; else searched in RSSEGLAB_DATA and ~/.cache/rsseglab",
    )


def _add_single_class(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--single-class",
        nargs="+",
        default=(),
        metavar="NAME",
        help="classes of --data that are one class, against all others as background",
    )


def _add_quickstart(commands: "_Commands") -> None:
    parser = _command(
        commands, "quickstart", "train a small U-Net, label whole scenes, compare two overlaps: minutes", _quickstart
    )
    _add_data_options(parser, "synthetic")
    parser.add_argument(
        "--out",
        type=Path,
        default=None,
        metavar="FOLDER",
        help="where results go; outputs/quickstart/NAME if not given",
    )
    parser.add_argument(
        "--steps", type=int, default=None, help="training steps; the data set's own default if not given"
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything random")


def _quickstart(args: argparse.Namespace) -> None:
    from rsseglab.experiments.quickstart import quickstart

    quickstart(args.data, args.root, args.out, args.steps, args.seed)


def _add_data(commands: "_Commands") -> None:
    parser = _command(commands, "data", "data sets: what there is, whether it is whole, and how to get it", _data)
    parser.add_argument("action", choices=("list", "show", "verify", "get"), help="what to do")
    parser.add_argument(
        "name",
        nargs="?",
        default=None,
        metavar="NAME",
        help="of a data set; verify without one checks all that are here",
    )


def _data(args: argparse.Namespace) -> None:
    from rsseglab.scenes.store import data_command

    data_command(args.action, args.name)


def _add_train(commands: "_Commands") -> None:
    parser = _command(commands, "train", "train a network on crops, large windows or whole scenes", _train)
    parser.set_defaults(parser=parser, warmup_steps=None)
    _add_data_options(parser, "synthetic")
    _add_single_class(parser)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/train"), metavar="FOLDER", help="for checkpoints, log and record"
    )
    parser.add_argument("--resume", action="store_true", help="go on from last.ckpt in --out, at the same step")
    parser.add_argument("--encoder", default="resnet18", help="any of timm's names")
    parser.add_argument("--decoder", default="unet", help="unet, fpn, deeplabv3plus, upernet, segformer, dpt, fcn, ...")
    parser.add_argument(
        "--weights", default="none", help="of the encoder: none, pretrained, a file, or torchgeo's name"
    )
    parser.add_argument(
        "--method",
        default=None,
        help="stock, rest (also by --interaction), fctl, bicor_seg, penet or refinement; stock if not given",
    )
    parser.add_argument("--preset", default=None, help=f"published settings: {', '.join(preset_names())}")
    _add_rest_options(parser)
    _add_fctl_options(parser)
    _add_bicor_seg_options(parser)
    _add_penet_options(parser)
    parser.add_argument("--steps", type=int, default=1000, help="length of the run")
    parser.add_argument("--batch-size", type=int, default=8, help="crops a step; of each data group, under torchrun")
    parser.add_argument(
        "--crop", type=int, default=256, metavar="PX", help="side of a crop, a multiple of 32; 0 for whole scenes"
    )
    parser.add_argument("--lr", type=float, default=1e-3, help="highest learning rate of AdamW")
    parser.add_argument("--weight-decay", type=float, default=1e-2, help="of AdamW")
    parser.add_argument("--schedule", default="cosine", help="cosine, poly or linear")
    parser.add_argument("--clip", type=float, default=None, metavar="NORM", help="cut the whole gradient down to it")
    parser.add_argument(
        "--loss", default=None, help="ce, dice, ce+dice or focal; ce+dice if not given, focal with FCtL and refinement"
    )
    parser.add_argument("--val-every", type=int, default=100, metavar="STEPS", help="steps between validations")
    parser.add_argument(
        "--val-window",
        type=int,
        default=512,
        metavar="PX",
        help="side of validation windows; 0 for whole scenes; a crop's for fctl, refinement",
    )
    parser.add_argument("--no-augment", action="store_true", help="no flips, turns, brightness, contrast")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument("--workers", type=int, default=0, help="processes that read ahead")
    parser.add_argument("--precision", default="auto", help="auto, or one of Lightning's names")


def _add_rest_options(parser: argparse.ArgumentParser) -> None:
    rest = parser.add_argument_group("one scene over many workers (REST)")
    rest.add_argument(
        "--interaction", default=None, metavar="HOW", help="how tiles meet: none, spim, exact or exact+spim"
    )
    rest.add_argument(
        "--spatial", default="1", metavar="TILES", help="tiles that each crop is cut in, 4 or 2x2, a process each"
    )
    rest.add_argument("--in-process", action="store_true", help="hold all tiles in this process")
    rest.add_argument("--heads", default="8", metavar="N", help="of SPIM; 'world' for as many as tiles")
    rest.add_argument(
        "--strides", type=int, nargs="+", default=[4, 8, 16, 32], metavar="PX", help="levels that get a SPIM"
    )
    rest.add_argument("--residual", default="published", help="of SPIM: published or plain")
    rest.add_argument("--pool", type=int, default=1, metavar="PX", help="pooling of SPIM's keys and values at stride 4")
    rest.add_argument("--decode", default="tile", help="under spim, the decoder's way: tile or exact")
    rest.add_argument("--init", type=Path, default=None, metavar="FILE", help="checkpoint of the first of two stages")
    rest.add_argument(
        "--freeze-early", action="store_true", help="train the encoder's last stage, SPIM and the decoder"
    )
    rest.add_argument("--checkpointing", action="store_true", help="compute activations again instead of keeping them")
    rest.add_argument("--offload", action="store_true", help="keep activations in the computer's memory")


def _add_fctl_options(parser: argparse.ArgumentParser) -> None:
    fctl = parser.add_argument_group("patches that look at their contexts (FCtL, refinement)")
    fctl.add_argument(
        "--contexts", nargs="+", default=None, metavar="SCALE",
        help="sides of contexts, in patches, or 'scene'; 1 is the patch itself; 1 2 3 (refinement: 2) if not given",
    )  # fmt: skip
    fctl.add_argument("--correlation", default="attention", help="of patch and context: attention or concatenation")
    fctl.add_argument("--value", default="context", help="of the attention: context (code) or local (paper)")
    fctl.add_argument("--whiten", action="store_true", help="take the mean from queries and keys (code for DeepGlobe)")
    fctl.add_argument("--fusion", default="code", help="of contexts: code, paper, constant or mean")
    fctl.add_argument("--stages", default="joint", help="joint, or published: one context each, then all, frozen")
    fctl.add_argument("--edge", default="pad", help="contexts past the scene's edge: pad or clip")
    fctl.add_argument(
        "--segmenter",
        type=Path,
        default=None,
        metavar="FILE",
        help="checkpoint whose masks a refinement learns to mend",
    )


def _add_bicor_seg_options(parser: argparse.ArgumentParser) -> None:
    bicor = parser.add_argument_group("class embeddings and features that refine each other (BiCoR-Seg)")
    bicor.add_argument("--reading", default="code", help="where the paper and its code disagree: paper or code")
    bicor.add_argument("--layers", type=int, default=2, help="number of refinements")
    bicor.add_argument("--top-k", type=float, default=0.02, help="share of the pixels that make a class's region")
    bicor.add_argument("--refine-by", default="hbis", metavar="HOW", help="hbis, or attention (the paper's baseline)")
    bicor.add_argument("--heatmap-weight", type=float, default=0.1, help="of the heatmap loss")
    bicor.add_argument("--fisher-weight", type=float, default=0.1, help="of the Fisher loss")


def _add_penet_options(parser: argparse.ArgumentParser) -> None:
    penet = parser.add_argument_group("labels that are points (our reading of PENet's abstract)")
    penet.add_argument("--points", type=Path, default=None, metavar="FOLDER", help="clicks in the training scenes")
    penet.add_argument(
        "--grown", type=Path, default=None, metavar="FOLDER", help="what they have grown to, if anything"
    )
    penet.add_argument("--expansion", default="similarity", help="similarity, regions (CRGNet's), soft (AGMM's), none")
    penet.add_argument("--attention", default="ema", help="ema or none, before the head")
    penet.add_argument("--grown-weight", type=float, default=1.0, help="of the loss of grown labels")
    penet.add_argument("--expanded-weight", type=float, default=0.5, help="of the loss of expanded labels")
    penet.add_argument("--absence-weight", type=float, default=0.0, help="of the penalty of classes without an anchor")


#: What only one method has a use for, with its default.
REST_ONLY: dict[str, object] = {
    "heads": "8", "strides": [4, 8, 16, 32], "residual": "published", "pool": 1, "decode": "tile",
    "checkpointing": False,
}  # fmt: skip
FCTL_ONLY: dict[str, object] = {
    "correlation": "attention", "value": "context", "whiten": False, "fusion": "code", "stages": "joint",
}  # fmt: skip
BICOR_ONLY: dict[str, object] = {
    "reading": "code", "layers": 2, "top_k": 0.02, "refine_by": "hbis", "heatmap_weight": 0.1, "fisher_weight": 0.1,
}  # fmt: skip
PENET_ONLY: dict[str, object] = {
    "points": None, "grown": None, "expansion": "similarity", "attention": "ema", "grown_weight": 1.0,
    "expanded_weight": 0.5, "absence_weight": 0.0,
}  # fmt: skip
CONTEXTS_ONLY: dict[str, object] = {"contexts": None, "edge": "pad"}
WINDOWS_ONLY: dict[str, object] = {"val_window": 512}
ENCODERS_ONLY: dict[str, object] = {"encoder": "resnet18", "weights": "none"}
DECODERS_ONLY: dict[str, object] = {"decoder": "unet"}
ONLY: tuple[tuple[tuple[str, ...], str, str, dict[str, object]], ...] = (
    (("rest",), "REST's", "say how tiles meet with --interaction", REST_ONLY),
    (("fctl",), "FCtL's", "give --method fctl", FCTL_ONLY),
    (("fctl", "refinement"), "for patches with contexts", "give --method fctl or refinement", CONTEXTS_ONLY),
    (("bicor_seg",), "BiCoR-Seg's", "give --method bicor_seg", BICOR_ONLY),
    (("penet",), "PENet's", "give --method penet", PENET_ONLY),
    (
        ("stock", "rest", "bicor_seg", "penet"),
        "for methods without patches",
        "patches are validated as such",
        WINDOWS_ONLY,
    ),
    (
        ("stock", "rest", "fctl", "bicor_seg", "penet"),
        "for networks on an encoder",
        "refinement has its own",
        ENCODERS_ONLY,
    ),
    (("stock", "rest", "fctl", "penet"), "for networks that take any", "this one has its own", DECODERS_ONLY),
)


def _take_preset(args: argparse.Namespace) -> None:
    """Make a preset's settings the defaults, so that options that are given win."""
    args.parser.set_defaults(**load_preset(args.preset).settings)


def _method(args: argparse.Namespace) -> str:
    """The method's name; options that it has no use for are refused."""
    method = args.method or ("rest" if args.interaction else "stock")
    if (method == "rest") != bool(args.interaction):
        raise UserError(
            f"--interaction says how tiles meet in REST, and method {method} has no tiles; leave it out."
            if args.interaction
            else "method rest needs to know how tiles meet; give --interaction, such as exact+spim."
        )
    for owners, whose, remedy, options in ONLY:
        idle = [name.replace("_", "-") for name, default in options.items() if getattr(args, name) != default]
        if idle and method not in owners:
            raise UserError(f"--{idle[0]} is {whose}; {remedy}, or leave it out.")
    if method == "bicor_seg" and args.loss:
        raise UserError("BiCoR-Seg has a loss of its own; leave out --loss, or weigh its parts (--heatmap-weight).")
    if method == "penet" and args.loss:
        raise UserError("PENet has a loss of its own; leave out --loss, or weigh its parts (--grown-weight).")
    if method == "penet" and args.points is None:
        raise UserError("method penet learns from points; give --points, a folder that 'rsseglab points sample' made.")
    return method


def _options(args: argparse.Namespace, method: str) -> dict[str, object] | None:
    """Of the method, in plain types."""
    if method == "rest":
        return _rest_options(args)
    if method == "fctl":
        if args.encoder == "vgg16" and args.decoder != "unet":
            raise UserError("FCtL on vgg16 is the published FCN-8s, with a decoder of its own; leave out --decoder.")
        scales = [_scale_of(text) for text in args.contexts or ("1", "2", "3")]
        return {"contexts": scales, "edge": args.edge, **{name: getattr(args, name) for name in FCTL_ONLY}}
    if method == "bicor_seg":
        if args.refine_by == "attention" or not args.layers:
            idle = [n for n in ("top_k", "heatmap_weight") if getattr(args, n) != BICOR_ONLY[n]]
            if idle:
                raise UserError(f"--{idle[0].replace('_', '-')} is of HBIS, and there is none; leave it out.")
        names = {"reading": "preset", "refine_by": "refinement", "heatmap_weight": "heatmap", "fisher_weight": "fisher"}
        return {names.get(name, name): getattr(args, name) for name in BICOR_ONLY}
    if method == "penet":
        if args.expansion == "none" and args.expanded_weight != PENET_ONLY["expanded_weight"]:
            raise UserError("--expanded-weight weighs what is expanded, and nothing is; leave it out.")
        if args.grown is None and args.grown_weight != PENET_ONLY["grown_weight"]:
            raise UserError("--grown-weight weighs what has grown; give it with --grown, or leave it out.")
        weights = {"masks": "grown_weight", "expanded": "expanded_weight", "absence": "absence_weight"}
        names = {"attention": "attention", "expansion": "expansion", **weights}
        return {name: getattr(args, option) for name, option in names.items()}
    if method == "refinement":
        return {"contexts": [_scale_of(text) for text in args.contexts or ("2",)], "edge": args.edge}
    return None


def _scale_of(text: str) -> float | str:
    from rsseglab.fctl.contexts import GLOBAL

    try:
        return text if text == GLOBAL else float(text) if "." in str(text) else int(text)
    except ValueError:
        raise UserError(f"'{text}' is no scale of a context; give a number, or '{GLOBAL}'.") from None


def _rest_options(args: argparse.Namespace) -> dict[str, object]:
    return {
        "interaction": args.interaction,
        "heads": args.heads if args.heads == "world" else _number(args.heads, "--heads"),
        "strides": args.strides,
        "residual": args.residual,
        "pool": {4: args.pool},
        "decode": args.decode,
        "checkpointing": args.checkpointing,
    }


def _number(text: str, option: str) -> int:
    if not text.isdigit():
        raise UserError(f"{option} is '{text}'; give a number, or 'world'.")
    return int(text)


def _train(args: argparse.Namespace) -> None:
    from rsseglab.experiments.run import train_and_record
    from rsseglab.training.fit import TrainConfig

    preset = load_preset(args.preset) if args.preset else None
    method = _method(args)
    if preset and args.init is None:
        check_first_stage(preset)
    settings = {
        "encoder": args.encoder,
        "decoder": args.decoder,
        "weights": None if args.weights == "none" else args.weights,
        "method": method,
        "options": _options(args, method),
        "init": str(args.init) if args.init else None,
        "freeze_early": args.freeze_early,
        "spatial": args.spatial,
        "in_process": args.in_process,
        "steps": args.steps,
        "batch_size": args.batch_size,
        "crop_px": args.crop or None,
        "clip": args.clip,
        "offload": args.offload,
        "lr": args.lr,
        "weight_decay": args.weight_decay,
        "schedule": args.schedule,
        "warmup_steps": args.warmup_steps,
        "loss": args.loss or ("focal" if method in ("fctl", "refinement") else "ce+dice"),
        "val_every": args.val_every,
        "val_window_px": (args.crop if method in ("fctl", "refinement") else args.val_window) or None,
        "augment": not args.no_augment,
        "seed": args.seed,
        "num_workers": args.workers,
        "precision": args.precision,
    }
    config = TrainConfig(**settings)
    result = train_and_record(
        args.data, args.root, config, args.out, args.resume, args.single_class, args.segmenter, args.points, args.grown,
        preset,
    )  # fmt: skip
    over = " over background and the single class" if args.single_class else ""
    if os.environ.get("RANK", "0") == "0":
        print(f"best checkpoint: {result.checkpoint} (validation mean IoU{over} {result.val_mean_iou:.3f})")


def _add_predict(commands: "_Commands") -> None:
    parser = _command(commands, "predict", "label whole scenes with a checkpoint, as GeoTIFFs", _predict)
    parser.add_argument(
        "scenes",
        nargs="*",
        type=Path,
        metavar="SCENE",
        help="rasters, or folders of rasters; of --data, its scenes by name",
    )
    _add_data_options(parser, None)
    parser.add_argument("--split", default="test", help="of --data")
    _add_single_class(parser)
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="best.ckpt of 'rsseglab train'")
    parser.add_argument(
        "--output", type=Path, default=Path("predictions"), metavar="PATH", help="a .tif for one scene, or a folder"
    )
    parser.add_argument(
        "--window",
        type=int,
        default=None,
        metavar="PX",
        help="side of a window; the training crops' if not given",
    )
    parser.add_argument("--overlap", type=float, default=0.5, help="shared part of a window's side, 0 to less than 1")
    parser.add_argument("--blend", default="hann", help="flat, linear, hann or gaussian")
    parser.add_argument("--placement", default="flush", help="flush (MONAI's) or even (GLNet's)")
    parser.add_argument("--merge", default="logits", help="what overlapping windows share: logits or probabilities")
    parser.add_argument("--batch-size", type=int, default=4, help="windows at a time")
    parser.add_argument(
        "--refine", type=Path, default=None, metavar="FILE", help="best.ckpt of method refinement: mends the masks"
    )
    parser.add_argument(
        "--probabilities", action="store_true", help="also write class probabilities, probabilities/NAME.tif"
    )
    parser.add_argument(
        "--whole", action="store_true", help="no windows: each scene in one pass of the network, without seams"
    )
    parser.add_argument(
        "--spatial",
        default=None,
        metavar="P",
        help="with --whole: cut scenes over P ranks, in bands of rows, or RxC; torchrun's ranks if it started this",
    )
    parser.add_argument(
        "--stream", action="store_true", help="as --whole, but band by band through one device, in bounded memory"
    )
    parser.add_argument(
        "--memory", type=float, default=None, metavar="MIB", help="with --stream: for results; the rest goes to disk"
    )
    parser.add_argument(
        "--spill",
        type=Path,
        default=None,
        metavar="FOLDER",
        help="with --stream: the folder on disk; that of --output if not given",
    )
    parser.add_argument("--resume", action="store_true", help="with --stream: go on where a run was killed")
    parser.add_argument("--device", default=None, help="cpu, cuda, ...; a GPU if there is one")


def _predict(args: argparse.Namespace) -> None:
    from rsseglab.experiments.methods import check_pair, cropping_of, predict_by_crops
    from rsseglab.inference import pick_device
    from rsseglab.training.checkpoint import load_checkpoint
    from rsseglab.training.networks import ANY_SIZE

    if (args.whole or args.stream) and (args.probabilities or args.window or args.refine or args.merge != "logits"):
        way = "--whole" if args.whole else "--stream"
        raise UserError(
            f"{way} has no windows and writes no probabilities; leave out --window, --merge, --probabilities and "
            "--refine."
        )
    if args.whole and args.stream:
        raise UserError("--whole labels a scene in one pass, --stream band by band; give one of them.")
    if args.memory is not None and not 0 < args.memory < float("inf"):
        raise UserError(f"--memory {args.memory:g} is no memory; give MiB, such as 2000.")
    if (args.resume or args.spill or args.memory) and not args.stream:
        raise UserError("--memory, --spill and --resume belong to --stream; add it, or leave them out.")
    if args.spatial and not args.whole:
        raise UserError("--spatial cuts scenes that are labelled whole; add --whole, or leave it out.")
    trained = load_checkpoint(args.checkpoint)
    refiner = load_checkpoint(args.refine) if args.refine else None
    check_pair(trained, refiner)
    if (args.whole or args.stream) and trained.method in ANY_SIZE:
        raise UserError(f"a network of method {trained.method} labels patches; leave out --whole and --stream.")
    if args.window is None and trained.crop_px is None and not (args.whole or args.stream):
        raise UserError(f"{args.checkpoint} was trained on whole scenes; label with --whole, or name a --window.")
    merging = {name: getattr(args, name) for name in ("overlap", "blend", "placement", "batch_size", "merge")}
    cropping = cropping_of(trained, args.window, **merging)
    device = pick_device(args.device)
    scenes = _scenes_to_label(args, trained.bands)
    single = args.output.suffix.lower() in (".tif", ".tiff")
    if single and len(scenes) > 1:
        raise UserError(f"{len(scenes)} scenes do not fit in one file {args.output}; give a folder as --output.")
    folder = args.output.parent if single else args.output
    paths = [args.output if single else folder / f"{scene.name}.tif" for scene in scenes]
    shares = [folder / "probabilities" / path.relative_to(folder) if args.probabilities else None for path in paths]
    for scene in scenes:
        trained.check_fits(scene)
        _check_same_class(args, scene, trained.classes)
        _check_not_a_source(scene, [*paths, *(path for path in shares if path)])
    if args.whole:
        from rsseglab.inference.whole import predict_scenes_whole
        from rsseglab.training.ranks import Grid

        grid = Grid.parse(args.spatial) if args.spatial else None
        for done in predict_scenes_whole(args.checkpoint, scenes, paths, grid, args.device):
            _print_scored(done, args, scenes)
        return
    if args.stream:
        from rsseglab.inference import predict_stream

        how = {"memory_mib": args.memory, "spill": args.spill, "resume": args.resume, "device": device}
        for scene, path in zip(scenes, paths, strict=True):
            _print_scored(predict_stream(trained, scene, path, **how), args, scenes)
        return
    print(f"{trained.decoder} on {trained.encoder}, windows of {cropping.window_px} px, on {device}")
    for scene, path, share in zip(scenes, paths, shares, strict=True):
        done = predict_by_crops(trained, scene, path, cropping, refiner=refiner, probabilities=share, device=device)
        print(f"{done.path}: {done.seconds:.1f} s, peak {done.peak_mib:.0f} MiB")


def _print_scored(done: "Prediction", args: argparse.Namespace, scenes: "Sequence[Scene]") -> None:
    name, means = ("mean IoU", None) if not args.single_class else (f"IoU of {_one(scenes)}", [_one(scenes)])
    score = f", {name} {done.confusion.mean_iou(means):.3f}" if done.confusion else ""
    print(f"{done.path}: {done.seconds:.1f} s, peak {done.peak_mib:.0f} MiB{score}")


def _one(scenes: "Sequence[Scene]") -> str:
    """The name of the class that stands against the background."""
    return scenes[0].classes[1].name


def _check_same_class(args: argparse.Namespace, scene: "Scene", classes: "Sequence[LabelClass]") -> None:
    known = [c.name for c in classes]
    if args.single_class and [c.name for c in scene.classes] != known:
        raise UserError(
            f"the checkpoint labels {', '.join(known)}, not {_one([scene])} alone; give --single-class as in training, "
            "or leave it out."
        )


def _check_not_a_source(scene: "Scene", paths: Sequence[Path]) -> None:
    written = {path.resolve() for path in paths}
    for source in scene.paths:
        if source.resolve() in written:
            raise UserError(f"{source} would be overwritten by its own labels; give another --output.")


def _scenes_to_label(args: argparse.Namespace, bands: Sequence[str]) -> "list[Scene]":
    from rsseglab.experiments.run import as_one_class
    from rsseglab.scenes.manifest import load_manifest

    if not args.data and not args.scenes:
        raise UserError("say what to label: rasters or folders, or --data NAME.")
    if args.data:
        manifest = load_manifest(args.data)
        named = [manifest.scene(str(name), args.root) for name in args.scenes]
        return as_one_class(named or manifest.scenes(args.split, args.root), args.single_class)
    if args.single_class:
        raise UserError("--single-class names classes of --data; files are labelled by the checkpoint's, leave it out.")
    files = [file for path in args.scenes for file in (_rasters(path) if path.is_dir() else [path])]
    names = [file.stem for file in files]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"several scenes are named {', '.join(twice)}; label them one by one, or rename them.")
    return [_open_as(file, bands) for file in files]


def _open_as(file: Path, bands: Sequence[str]) -> "Scene":
    from rsseglab.scenes.scene import Scene

    scene = Scene(file)
    if scene.count + 1 == len(bands):  # a fourth band that GDAL takes for alpha
        return Scene(file, bands=bands)
    return scene


RASTERS = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".jp2", ".npy", ".vrt")


def _rasters(folder: Path) -> list[Path]:
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in RASTERS)
    if not files:
        raise UserError(f"no raster in {folder} ({', '.join(RASTERS)}); name the files.")
    return files


def _add_evaluate(commands: "_Commands") -> None:
    parser = _command(commands, "evaluate", "score predictions over whole scenes", _evaluate)
    parser.add_argument(
        "predictions", nargs="+", type=Path, metavar="PREDICTION", help="label rasters of 'rsseglab predict'"
    )
    _add_data_options(parser, None)
    parser.add_argument(
        "--label",
        nargs="+",
        type=Path,
        default=None,
        metavar="RASTER",
        help="labels, one a prediction, instead of --data",
    )
    parser.add_argument(
        "--classes", nargs="+", default=None, metavar="NAME", help="classes that enter the means; all if not given"
    )
    _add_single_class(parser)
    parser.add_argument("--boundary", type=int, default=3, metavar="PX", help="tolerance of the boundary F1")
    parser.add_argument(
        "--seam", type=int, default=8, metavar="PX", help="how near to a window border a pixel counts as at the seam"
    )
    parser.add_argument(
        "--protocol",
        default="honest",
        metavar="NAME",
        help="fctl, geoseg: also show the scores as papers define them; honest: ours alone",
    )
    parser.add_argument(
        "--no-boundary",
        type=int,
        default=0,
        metavar="PX",
        help="leave out labels at most so near to another class, 3 as ISPRS's eroded labels; not for the boundary F1",
    )
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="also write the scores to a file")


def _evaluate(args: argparse.Namespace) -> None:
    from rsseglab.experiments.run import evaluate_and_print

    scenes = _reference_scenes(args)
    classes = args.classes or ([_one(scenes)] if args.single_class else None)
    protocol = None if args.protocol == "honest" else args.protocol
    settings = (args.boundary, args.seam, args.json, protocol, args.no_boundary)
    evaluate_and_print(args.predictions, scenes, classes, *settings)


def _reference_scenes(args: argparse.Namespace) -> "list[Scene]":
    from rsseglab.experiments.run import as_one_class
    from rsseglab.scenes.manifest import load_manifest
    from rsseglab.scenes.raster import read_tags

    if bool(args.data) == bool(args.label):
        raise UserError("say what is true: either --data NAME, or --label RASTER for each prediction.")
    if args.data:
        manifest = load_manifest(args.data)
        scenes = [manifest.scene(read_tags(path).get("scene", path.stem), args.root) for path in args.predictions]
        return as_one_class(scenes, args.single_class)
    if args.single_class:
        raise UserError("--single-class names classes of --data; give that instead of --label.")
    if len(args.label) != len(args.predictions):
        raise UserError(f"{len(args.predictions)} predictions but {len(args.label)} labels; give one for each.")
    pairs = zip(args.predictions, args.label, strict=True)
    return [_labelled_by(label, prediction) for prediction, label in pairs]


def _labelled_by(label: Path, prediction: Path) -> "Scene":
    import numpy as np

    from rsseglab.scenes.raster import ArraySource, RasterSource
    from rsseglab.scenes.scene import Scene

    grid = RasterSource(label)
    # Nobody looks at the image: one that takes no memory and has data everywhere will do.
    image = ArraySource(np.broadcast_to(np.uint8(0), (grid.height, grid.width)), grid.crs, grid.transform)
    return Scene(image, label, *_legend(prediction), name=prediction.stem)


def _legend(prediction: Path) -> "tuple[list[LabelClass], list[int]]":
    from rsseglab.scenes.raster import read_legend
    from rsseglab.scenes.scene import LabelClass

    legend, nodata = read_legend(prediction)
    if not legend:
        raise UserError(f"{prediction} does not name its classes; give a raster of 'rsseglab predict', or --data NAME.")
    classes = [LabelClass(name, value, color) for value, (name, color) in legend.items()]
    return classes, [] if nodata is None else [nodata]


def _add_submit(commands: "_Commands") -> None:
    about = "pack maps of a test set with hidden labels as its evaluation server takes them"
    parser = _command(commands, "submit", about, _submit)
    parser.add_argument("server", help="loveda")
    parser.add_argument(
        "predictions",
        nargs="+",
        type=Path,
        metavar="PREDICTION",
        help="label rasters of 'rsseglab predict', or folders",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the .zip to write")
    parser.add_argument("--partial", action="store_true", help="even where tiles are missing")


def _submit(args: argparse.Namespace) -> None:
    from rsseglab.evaluation.submission import SERVERS, write_loveda_submission

    if args.server not in SERVERS:
        raise UserError(f"there is no server of '{args.server}'; choose from {', '.join(SERVERS)}.")
    tiles = write_loveda_submission(args.predictions, args.output, args.partial, progress=True)
    print(f"{args.output}: {tiles} tiles, for {SERVERS[args.server]}")


def _add_points(commands: "_Commands") -> None:
    about = "point labels: sample clicks from dense labels, grow them by masks, show them"
    parser = _command(commands, "points", about, _points)
    parser.add_argument("action", choices=("sample", "grow", "show"), help="what to do")
    _add_data_options(parser, "synthetic")
    parser.add_argument("--split", default="train", help="of the data set")
    parser.add_argument("--out", type=Path, default=None, metavar="FOLDER", help="runs/points/ACTION if not given")
    parser.add_argument("--points", type=Path, default=None, metavar="FOLDER", help="of clicks, to grow or show")
    sampling = parser.add_argument_group("sample")
    sampling.add_argument(
        "--how",
        default="innermost",
        help="innermost (of each object, farthest from its edge), objects (at random in each), classes (so many a "
        "class), share (of the pixels)",
    )
    sampling.add_argument("--each", type=int, default=1, help="clicks an object or a class")
    sampling.add_argument("--share", type=float, default=1e-4, help="of the labelled pixels")
    sampling.add_argument("--least-px", type=int, default=100, help="objects of so many px or fewer are not clicked")
    sampling.add_argument("--leave-out", nargs="+", default=(), metavar="CLASS", help="classes that nobody clicks")
    sampling.add_argument("--wrong", type=float, default=0.0, metavar="SHARE", help="of the clicks get a wrong class")
    sampling.add_argument("--off-px", type=float, default=0.0, metavar="PX", help="by which clicks miss (deviation)")
    sampling.add_argument("--seed", type=int, default=0, help="of everything random")
    growing = parser.add_argument_group("grow")
    growing.add_argument(
        "--by", default="sam", help="sam, superpixels, discs, or a folder of segment numbers, NAME.tif a scene"
    )
    growing.add_argument("--network", default="mobile_sam", help="mobile_sam, sam_vit_b, sam_vit_l or sam_vit_h")
    growing.add_argument("--weights", type=Path, default=None, metavar="FILE", help="of it; looked for if not given")
    growing.add_argument("--cache", type=Path, default=None, metavar="FOLDER", help="where embeddings are kept")
    growing.add_argument("--most-share", type=float, default=0.25, help="of a window that a mask may have")
    growing.add_argument("--conflicts", default="smaller", help="where masks of two classes meet: smaller or ignore")
    parser.add_argument("--grown", type=Path, default=None, metavar="FOLDER", help="of grown labels, to show")


#: What only some of ``rsseglab points`` have a use for, by what they do, with its default.
POINTS_ONLY: tuple[tuple[str, str, dict[str, object]], ...] = (
    ("sample", "sample", {"how": "innermost", "leave_out": (), "wrong": 0.0, "off_px": 0.0, "seed": 0}),
    ("sample --how objects or classes", "objects classes", {"each": 1}),
    ("sample --how share", "share", {"share": 1e-4}),
    ("sample --how innermost or objects", "innermost objects", {"least_px": 100}),
    ("grow", "grow", {"by": "sam", "most_share": 0.25, "conflicts": "smaller"}),
    ("grow --by sam", "sam", {"network": "mobile_sam", "weights": None, "cache": None}),
    ("grow and show", "grow show", {"points": None}),
    ("show", "show", {"grown": None}),
)  # fmt: skip


def _check_points(args: argparse.Namespace) -> None:
    """Refuse options that what is done has no use for."""
    doing = {
        args.action,
        *({args.how} if args.action == "sample" else ()),
        *({args.by} if args.action == "grow" else ()),
    }
    for whose, owners, options in POINTS_ONLY:
        idle = [name.replace("_", "-") for name, default in options.items() if getattr(args, name) != default]
        if idle and not doing & set(owners.split()):
            raise UserError(f"--{idle[0]} is of 'rsseglab points {whose}'; leave it out.")


def _points(args: argparse.Namespace) -> None:
    from rsseglab.experiments import points
    from rsseglab.scenes.manifest import load_protocol

    _check_points(args)
    manifest, prefix = load_protocol(args.data)
    scenes = manifest.scenes(prefix + args.split, args.root)
    out = args.out or Path("runs/points") / args.action
    if args.action == "sample":
        points.sample_and_write(
            scenes, out, args.how, args.seed,
            wrong=args.wrong, off_px=args.off_px, each=args.each, share=args.share, least_px=args.least_px,
            leave_out=args.leave_out,
        )  # fmt: skip
        return
    if args.points is None:
        raise UserError(f"name a folder of clicks to {args.action} with --points; 'rsseglab points sample' makes one.")
    if args.action == "show":
        points.show(scenes, args.points, args.grown, out)
        return
    sam = {"network": args.network, "weights": args.weights, "cache": args.cache} if args.by == "sam" else {}
    points.grow_and_write(
        scenes, args.points, out, args.by, most_share=args.most_share, conflicts=args.conflicts, **sam
    )


def _add_own(commands: "_Commands") -> None:
    about = "your own scene: from a GeoTIFF and drawn polygons or points to a map and polygons for a GIS; minutes"
    parser = _command(commands, "own", about, _own)
    parser.add_argument("images", nargs="+", type=Path, metavar="SCENE", help="rasters that GDAL opens, georeferenced")
    parser.add_argument(
        "--labels", type=Path, required=True, metavar="PATH",
        help="polygons or points: a GeoPackage, GeoJSON, Shapefile, or a folder of them; a CSV of points",
    )  # fmt: skip
    parser.add_argument(
        "--class-column", default=None, metavar="NAME",
        help="names a feature's class; if not given 'class' where all layers have it, else a layer is a class",
    )  # fmt: skip
    parser.add_argument("--rest", default=None, metavar="CLASS", help="class of what is in no polygon; else ignored")
    parser.add_argument("--conflicts", default="smaller", help="where classes overlap: smaller is on top, or ignore")
    parser.add_argument(
        "--bands", nargs="+", default=(), metavar="NAME", help="of the rasters, if the file's are wrong"
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/own"), metavar="FOLDER", help="where results go")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run in --out")
    parser.add_argument("--val-share", type=float, default=0.25, metavar="SHARE", help="of the labels, for validation")
    parser.add_argument(
        "--grow-by", default=None, help="points by: sam, superpixels or discs; sam where its weights are"
    )
    parser.add_argument("--encoder", default="tf_efficientnet_lite0", help="any of timm's names")
    parser.add_argument(
        "--weights",
        default=None,
        help="of the encoder: none, pretrained or a file; ImageNet's from RSSEGLAB_WEIGHTS if there",
    )
    parser.add_argument("--decoder", default=None, help="unet, from points fpn, if not given")
    parser.add_argument(
        "--crop",
        type=int,
        default=None,
        metavar="PX",
        help="a multiple of 32; 256, or less in a small scene, if not given",
    )
    parser.add_argument("--batch-size", type=int, default=8, help="crops a step")
    parser.add_argument("--steps", type=int, default=300, help="length of the training")
    parser.add_argument("--lr", type=float, default=1e-3, help="highest learning rate of AdamW")
    parser.add_argument(
        "--sieve", type=int, default=0, metavar="PX", help="regions of fewer px are no polygons of their own"
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything random")


def _own(args: argparse.Namespace) -> None:
    from rsseglab.experiments.own_scene import own_scene

    names = ("class_column", "rest", "conflicts", "bands", "val_share", "grow_by", "encoder", "weights", "decoder")
    same = {name: getattr(args, name) for name in (*names, "batch_size", "steps", "lr", "seed", "resume")}
    own_scene(args.images, args.labels, args.out, crop_px=args.crop, sieve_px=args.sieve, **same)


def _add_compare(commands: "_Commands") -> None:
    about = "compare cropping, downsampling, fusion and REST on one budget: hours; minutes with --quick"
    parser = _command(commands, "compare", about, _compare)
    _add_data_options(parser, "synthetic")
    parser.add_argument("--quick", action="store_true", help="a few steps on small scenes: all of it works, no more")
    parser.add_argument("--gpu", action="store_true", help="large windows, a larger network, many steps")
    parser.add_argument("--seeds", type=int, nargs="+", default=None, help="of training; the comparison's if not given")
    parser.add_argument("--methods", nargs="+", default=None, metavar="NAME", help="all if not given")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, a thread each")
    parser.add_argument(
        "--out", type=Path, default=None, metavar="FOLDER", help="outputs/compare/NAME if not given; goes on with it"
    )


def _compare(args: argparse.Namespace) -> None:
    from rsseglab.experiments.compare import compare, preset_of
    from rsseglab.experiments.tables import print_tables

    what = preset_of(args.data, args.quick, args.gpu)
    name = args.data.replace(":", "-") + "-quick" * args.quick + "-gpu" * args.gpu
    out = args.out or Path("outputs/compare") / name
    folder = compare(what, seeds=args.seeds, methods=args.methods, out=out, root=args.root, jobs=args.jobs)
    print_tables(folder)


def _add_ablate(commands: "_Commands") -> None:
    about = "what each part of a paper's method is worth: the method without it; an hour, minutes with --quick"
    parser = _command(commands, "ablate", about, _ablate)
    parser.add_argument("paper", help="fctl, bicor_seg or penet")
    _add_data_options(parser, "synthetic")
    parser.add_argument("--quick", action="store_true", help="a few steps on small scenes: all of it works, no more")
    parser.add_argument("--seeds", type=int, nargs="+", default=None, help="of training; the ablation's if not given")
    parser.add_argument("--methods", nargs="+", default=None, metavar="NAME", help="all if not given")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, a thread each")
    parser.add_argument(
        "--out", type=Path, default=None, metavar="FOLDER", help="outputs/ablate/PAPER/NAME if not given"
    )


def _ablate(args: argparse.Namespace) -> None:
    from rsseglab.experiments.ablate import ablation_of, print_ablation
    from rsseglab.experiments.compare import compare

    what = ablation_of(args.paper, args.data, args.quick)
    out = args.out or Path("outputs/ablate") / args.paper / (args.data + "-quick" * args.quick)
    folder = compare(what, seeds=args.seeds, methods=args.methods, out=out, root=args.root, jobs=args.jobs)
    print_ablation(folder)


def _add_assignments(commands: "_Commands") -> None:
    about = "the course's assignments: list them, make student copies, check answers, make a capstone scene"
    parser = _command(commands, "assignments", about, _assignments)
    parser.add_argument("action", choices=("list", "build", "check", "capstone"), help="what to do")
    parser.add_argument(
        "files",
        nargs="*",
        type=Path,
        metavar="FILE",
        help="to check: notebooks or .py files, or maps of the capstone; none: each assignment's solution and stub",
    )
    parser.add_argument("--only", nargs="+", default=None, metavar="NAME", help="of the assignments; all if not given")
    parser.add_argument("--out", type=Path, default=None, metavar="FOLDER", help="to write to; see the course's pages")
    parser.add_argument("--nbgrader", action="store_true", help="build the course folder of nbgrader")
    parser.add_argument(
        "--hidden",
        nargs="*",
        type=int,
        default=None,
        metavar="SEED",
        help="also check with other seeds than students see; 1 2 3 if none is named",
    )
    parser.add_argument("--seconds", type=float, default=None, help="that the check of a file may take; 120")
    parser.add_argument("--seed", type=int, default=None, help="of the capstone's scene; the teacher's secret")
    parser.add_argument("--size", type=int, default=None, metavar="PX", help="side of the capstone's scene; 1536")
    parser.add_argument("--label", type=Path, default=None, metavar="RASTER", help="the capstone's, to check against")


def _assignments(args: argparse.Namespace) -> None:
    from rsseglab.assignments.command import run

    if not run(args):
        sys.exit(1)


def _add_tables(commands: "_Commands") -> None:
    parser = _command(commands, "tables", "the papers' tables with ours beside, made of run records", _tables)
    parser.add_argument("papers", nargs="*", metavar="PAPER", help="rest, fctl, bicor_seg, penet; all if none is named")
    parser.add_argument(
        "--records", type=Path, default=Path("book/records"), metavar="FOLDER", help="with compare/ and ablate/"
    )
    parser.add_argument(
        "--runs", type=Path, nargs="+", default=(), metavar="FOLDER", help="of 'rsseglab train --preset', to add"
    )
    parser.add_argument("--format", default="text", help="text, markdown or csv")
    parser.add_argument("--out", type=Path, default=None, metavar="FILE", help="to write; printed if not given")


def _tables(args: argparse.Namespace) -> None:
    from rsseglab.experiments.paper_tables import write_tables

    write_tables(args.records, args.runs, args.papers, args.format, args.out)


def _add_scale(commands: "_Commands") -> None:
    about = "measure how the spatial engine scales over ranks, on this machine"
    # Its options are its own (it runs where torch is alone), --help included.
    commands.add_parser("scale", help=about, add_help=False).set_defaults(run=_scale)


def _scale(args: argparse.Namespace) -> None:
    from rsseglab.spatial.errors import SpatialError
    from rsseglab.spatial.scale import scale

    try:
        scale(args.options)
    except SpatialError as error:
        raise UserError(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
