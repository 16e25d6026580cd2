"""The execution providers: what each is called, what options it takes, and how to get it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from onnxprune.errors import ProviderError

CPU_NAME: Final = "CPUExecutionProvider"


@dataclass(frozen=True)
class Provider:
    """One execution provider.

    Attributes:
        name: the short name.
        ort_name: what ONNX Runtime calls it.
        install: what to install to have it, as the end of a sentence.
        options: the options that it is known to take; others are passed on, too.
        threads: the option that holds its threads, where it has its own.
        plugin: the module of a plug-in, whose ``get_library_path`` tells where the library lies;
            None where the provider is built in.
        hardware: the kind of device that a plug-in is for; on any other it only simulates.
        told: options that a function of the plug-in's module tells, where the user gives no option
            of the same kind (``backend_...``).
    """

    name: str
    ort_name: str
    install: str
    options: tuple[str, ...] = ()
    threads: str | None = None
    plugin: str | None = None
    hardware: str | None = None
    told: tuple[tuple[str, str], ...] = ()


def _pip(package: str) -> str:
    return f"pip install {package}"


def _alone(package: str, where: str = "") -> str:
    """A package that brings an onnxruntime of its own."""
    return f"pip install {package} in place of onnxruntime (they exclude each other){where}"


def _built(flag: str) -> str:
    return f"no PyPI package has it, build ONNX Runtime with {flag}"


_OPENVINO: Final = (
    "device_type",
    "precision",
    "num_of_threads",
    "num_streams",
    "cache_dir",
    "load_config",
    "enable_qdq_optimizer",
    "disable_dynamic_shapes",
)
_CUDA: Final = (
    "device_id",
    "gpu_mem_limit",
    "cudnn_conv_algo_search",
    "use_tf32",
    "prefer_nhwc",
    "enable_cuda_graph",
)
_TENSORRT: Final = (
    "device_id",
    "trt_fp16_enable",
    "trt_int8_enable",
    "trt_engine_cache_enable",
    "trt_engine_cache_path",
    "trt_max_workspace_size",
)
_COREML: Final = ("ModelFormat", "MLComputeUnits", "RequireStaticInputShapes", "EnableOnSubgraphs")
_QNN: Final = (
    "backend_type",
    "backend_path",
    "htp_performance_mode",
    "soc_model",
    "htp_arch",
    "enable_htp_fp16_precision",
)

PROVIDERS: Final = {
    row.name: row
    for row in (
        Provider("acl", "ACLExecutionProvider", _built("--use_acl (Arm)"), ("enable_fast_math",)),
        Provider("armnn", "ArmNNExecutionProvider", _built("--use_armnn (Arm)")),
        Provider(
            "coreml",
            "CoreMLExecutionProvider",
            "pip install onnxruntime on a Mac has it built in",
            _COREML,
        ),
        Provider("cpu", CPU_NAME, _pip("onnxruntime")),
        Provider("cuda", "CUDAExecutionProvider", _alone("onnxruntime-gpu"), _CUDA),
        Provider(
            "directml",
            "DmlExecutionProvider",
            _alone("onnxruntime-directml", " on Windows"),
            ("device_id", "performance_preference"),
        ),
        Provider("dnnl", "DnnlExecutionProvider", _built("--use_dnnl"), ("use_arena",)),
        Provider(
            "nnapi",
            "NnapiExecutionProvider",
            "it is in the Android package onnxruntime-android, so use "
            "'onnxprune bench --export' there",
        ),
        Provider(
            "openvino",
            "OpenVINOExecutionProvider",
            _alone("onnxruntime-openvino"),
            _OPENVINO,
            threads="num_of_threads",
        ),
        Provider(
            "openvino-plugin",
            "OpenVINOExecutionProvider",
            _pip("onnxruntime-ep-openvino"),
            _OPENVINO,
            "num_of_threads",
            "onnxruntime_ep_openvino",
        ),
        Provider(
            "qnn",
            "QNNExecutionProvider",
            _pip("onnxruntime-qnn"),
            _QNN,
            plugin="onnxruntime_qnn",
            hardware="NPU",
            told=(("backend_path", "get_qnn_htp_path"),),
        ),
        Provider("tensorrt", "TensorrtExecutionProvider", _alone("onnxruntime-gpu"), _TENSORRT),
        Provider(
            "webgpu",
            "WebGpuExecutionProvider",
            _pip("onnxruntime-ep-webgpu"),
            ("preferredLayout", "enableGraphCapture", "validationMode"),
            plugin="onnxruntime_ep_webgpu",
            hardware="GPU",
        ),
        Provider(
            "xnnpack",
            "XnnpackExecutionProvider",
            _built("--use_xnnpack"),
            ("intra_op_num_threads",),
            threads="intra_op_num_threads",
        ),
    )
}


def provider(name: str) -> Provider:
    """The row of a short name.

    Raises:
        ProviderError: there is none of this name.
    """
    if name not in PROVIDERS:
        raise ProviderError(
            f"there is no execution provider '{name}': give one of {', '.join(PROVIDERS)}"
        )
    return PROVIDERS[name]
