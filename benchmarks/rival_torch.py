"""The child that prunes an architecture with Torch-Pruning: `python -m benchmarks.rival_torch ...`.

Torch-Pruning needs the PyTorch module, so an architecture is named as in the zoo and built here
with random weights: `torchvision/resnet50`, `timm/vit_tiny_patch16_224`, `transformers/bert`. It is
exported before and after: FOLDER/original.onnx is what onnxprune prunes, and FOLDER/pruned.onnx
what Torch-Pruning made of the same weights. The settings follow its own examples: uniform ratio,
group magnitude, class outputs kept, attention told and attributes of the module mended by hand.
"""

import argparse
import importlib
import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.child import Report

CLASSES = 1000
IMAGE = (1, 3, 224, 224)
TOKENS = (1, 64)
SIZES = {"torchvision/inception_v3": (1, 3, 299, 299), "torchvision/raft_small": (1, 3, 128, 128)}
OPSET = 17

# How attention is pruned: (whole heads, dims within the heads). Its defaults are the second.
ATTENTION = {"both": (True, True), "dims": (False, True), "heads": (True, False)}

# The projections of an attention module: packed, or query, key and value.
PROJECTIONS = (
    ("qkv",),
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("q_lin", "k_lin", "v_lin"),
)

# transformers: (model class, configuration class, settings that differ from its defaults). Each
# class has a head, whose results are kept: so the hidden width can be pruned.
VISION = {"num_labels": CLASSES, "attn_implementation": "eager"}
TEXT = {"num_labels": CLASSES, "attn_implementation": "eager", "pad_token_id": 0}
DECODER = {"attn_implementation": "eager", "use_cache": False, "tie_word_embeddings": False}
SMALL_LLAMA = {
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_attention_heads": 8,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
}
DEEP_GPT2 = {"n_layer": 24, "n_embd": 1024, "n_head": 16}
TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertForSequenceClassification", "BertConfig", TEXT),
    "convnext": ("ConvNextForImageClassification", "ConvNextConfig", {"num_labels": CLASSES}),
    "distilbert": ("DistilBertForSequenceClassification", "DistilBertConfig", TEXT),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", DECODER),
    "gpt2_24l": ("GPT2LMHeadModel", "GPT2Config", DECODER | DEEP_GPT2),
    "llama": ("LlamaForCausalLM", "LlamaConfig", DECODER | SMALL_LLAMA),
    "resnet": ("ResNetForImageClassification", "ResNetConfig", {"num_labels": CLASSES}),
    "segformer": ("SegformerForImageClassification", "SegformerConfig", VISION),
    "swin": ("SwinForImageClassification", "SwinConfig", VISION),
    "vit": ("ViTForImageClassification", "ViTConfig", VISION),
}


@dataclass(frozen=True)
class Subject:
    """A module, the inputs that trace it, and what may not change: the layers that give outputs."""

    module: Any  # takes the inputs by position and returns one tensor
    inputs: tuple[Any, ...]
    kept: list[Any]


def main() -> None:
    """Build, export, prune and export again; the report is written whatever happens."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("architecture")
    parser.add_argument("folder", type=Path)
    parser.add_argument("report", type=Path)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--attention", choices=ATTENTION, default="both")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    report = Report()
    try:
        run(arguments, report)
    finally:
        report.write(arguments.report)


def run(arguments: argparse.Namespace, report: Report) -> None:
    """The whole comparison of one architecture, each step a phase of its own."""
    with report.phase("import"):
        import torch

        _stub_torchvision_ops()
        importlib.import_module("torch_pruning")
        report.details["version"] = metadata.version("torch-pruning")  # its __version__ lags
    torch.manual_seed(arguments.seed)
    torch.backends.mha.set_fastpath_enabled(False)
    with report.phase("build"):
        subject = build(arguments.architecture)
    report.details["attention_layers"] = len(heads_of(subject.module))
    with report.phase("export_original"):
        export(subject, arguments.folder / "original.onnx")
    with report.phase("count"):
        report.details["macs_before"] = count(subject)
    with report.phase("prune"):
        prune(subject, arguments.ratio, arguments.attention)
    with report.phase("count_pruned"):
        report.details["macs_after"] = count(subject)
    with report.phase("export_pruned"):
        export(subject, arguments.folder / "pruned.onnx")


def build(architecture: str) -> Subject:
    """The module called `SOURCE/NAME` in eval mode, with random weights and inputs to trace it."""
    import torch

    source, _, name = architecture.partition("/")
    image = torch.randn(SIZES.get(architecture, IMAGE))
    if source == "transformers":
        return _transformers(name, image)
    if source == "timm":
        module = importlib.import_module("timm").create_model(name).eval()
        return Subject(_adapted(module), (image,), _classifiers(module))
    if source == "torchvision":
        module = _torchvision(name)
        inputs = (image, image) if name.startswith("raft") else (image,)
        return Subject(_adapted(module), inputs, _classifiers(module))
    raise SystemExit(f"{architecture}: the source is torchvision, timm or transformers")


def prune(subject: Subject, ratio: float, attention: str) -> None:
    """Remove `ratio` of the channels of every group in place."""
    import torch
    import torch_pruning

    heads = heads_of(subject.module)
    whole_heads, head_dims = ATTENTION[attention]
    for parameter in subject.module.parameters():
        parameter.requires_grad_(True)  # the tracer follows autograd
    with torch.enable_grad():
        pruner = torch_pruning.pruner.BasePruner(
            subject.module,
            subject.inputs,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=ratio,
            ignored_layers=subject.kept,
            num_heads=dict(heads),
            prune_num_heads=whole_heads,
            prune_head_dims=head_dims,
            head_pruning_ratio=ratio if whole_heads else 0.0,
        )
        pruner.step()
    mend(subject.module, pruner.num_heads)
    with torch.no_grad():
        subject.module(*subject.inputs)


def count(subject: Subject) -> float:
    """MACs as Torch-Pruning counts: with biases, activations and norms, without most MatMul."""
    import torch_pruning

    macs, _ = torch_pruning.utils.count_ops_and_params(subject.module, subject.inputs)
    return float(macs)


def export(subject: Subject, path: Path) -> None:
    """Export with PyTorch's legacy exporter."""
    import torch

    with torch.no_grad():
        torch.onnx.export(
            subject.module,
            subject.inputs,
            str(path),
            input_names=[f"input_{index}" for index in range(len(subject.inputs))],
            output_names=["result"],
            opset_version=OPSET,
            dynamo=False,
        )


def _adapted(module: Any, names: Sequence[str] = ()) -> Any:
    """The module with one tensor as its result, its inputs by position (passed on as `names`)."""
    import torch

    class Adapter(torch.nn.Module):  # type: ignore[misc]
        """A module around the module: Torch-Pruning and the exporter see both."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, *inputs: Any) -> Any:
            """Call the module."""
            named = dict(zip(names, inputs, strict=True)) if names else {}
            return _first(self.inner(**named) if names else self.inner(*inputs))

    return Adapter().eval()


def _stub_torchvision_ops() -> None:
    """Let torchvision be imported where its compiled operators cannot be loaded (CPU-only torch).

    Only detection needs them (nms, roi_align); the registrations of their shapes would raise.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        for name in ("_meta_registrations", "_autograd_registrations"):
            sys.modules[f"torchvision.{name}"] = types.ModuleType(name)


def _torchvision(name: str) -> Any:
    models = importlib.import_module("torchvision.models")
    options: dict[str, Any] = {"weights": None}
    if name in {"googlenet", "inception_v3"}:
        options |= {"aux_logits": False, "init_weights": False}
    if name.startswith(("fcn", "deeplab", "lraspp")):
        options |= {"weights_backbone": None}
    return models.get_model(name, **options).eval()


def _transformers(name: str, image: Any) -> Subject:
    import torch

    library = importlib.import_module("transformers")
    model_class, configuration_class, settings = TRANSFORMERS[name]
    configuration = getattr(library, configuration_class)(**settings)
    module = getattr(library, model_class)(configuration).eval()
    head = module.get_output_embeddings()
    kept = _classifiers(module) if head is None else [head]
    if settings in (VISION, {"num_labels": CLASSES}):
        return Subject(_adapted(module, ["pixel_values"]), (image,), kept)
    tokens = torch.ones(TOKENS, dtype=torch.long)
    names = ["input_ids", "attention_mask"]
    return Subject(_adapted(module, names), (tokens, torch.ones_like(tokens)), kept)


def _first(result: Any) -> Any:
    """The main tensor of whatever a model returns."""
    if hasattr(result, "to_tuple"):
        result = result.to_tuple()
    if isinstance(result, dict):
        result = result["out"]
    return (
        result[-1]
        if isinstance(result, list)
        else result[0]
        if isinstance(result, tuple)
        else result
    )


def _classifiers(module: Any) -> list[Any]:
    """Layers whose results are the model's: as wide as the classes (segmentation has 21)."""
    import torch

    return [
        layer
        for layer in module.modules()
        if (isinstance(layer, torch.nn.Linear) and layer.out_features == CLASSES)
        or (isinstance(layer, torch.nn.Conv2d) and layer.out_channels in {CLASSES, 21})
    ]


def heads_of(module: Any) -> dict[Any, int]:
    """Number of heads by projection layer, for the attention modules of timm and transformers."""
    heads: dict[Any, int] = {}
    for layer in module.modules():
        for projections in PROJECTIONS:
            if all(hasattr(getattr(layer, name, None), "out_features") for name in projections):
                counts = _head_counts(layer)
                for name, count in zip(projections, counts, strict=False):
                    heads[getattr(layer, name)] = count
    return heads


def _head_counts(layer: Any) -> tuple[int, int, int]:
    """Query, key and value heads of an attention module, wherever it remembers them."""
    owners = (layer, getattr(layer, "config", None))
    names = ("num_attention_heads", "num_heads", "n_heads")
    found = [getattr(owner, name, None) for owner in owners for name in names]
    queries = next(count for count in found if isinstance(count, int))
    keys = getattr(owners[1], "num_key_value_heads", None) or queries
    return queries, keys, keys


def mend(module: Any, heads: dict[Any, int]) -> None:
    """Restate what modules remember of their widths: Torch-Pruning cannot know these attributes."""
    for layer in module.modules():
        if type(layer).__name__ == "VisionTransformer" and hasattr(layer, "hidden_dim"):
            layer.hidden_dim = layer.conv_proj.out_channels
        for projections in PROJECTIONS:
            first: Any = getattr(layer, projections[0], None)
            if first not in heads:
                continue
            keys: Any = getattr(layer, projections[-2:][0])
            width = first.out_features // (3 if len(projections) == 1 else 1)
            restated = {
                ("num_heads", "num_attention_heads", "n_heads"): heads[first],
                ("head_dim", "attention_head_size"): width // heads[first],
                ("attn_dim", "all_head_size", "dim"): width,
                ("num_key_value_groups",): heads[first] // heads[keys],
            }
            for attributes, value in restated.items():
                for attribute in attributes:
                    if isinstance(getattr(layer, attribute, None), int):
                        setattr(layer, attribute, value)


if __name__ == "__main__":
    main()
