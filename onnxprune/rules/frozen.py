"""Operators that no line can say, or none says yet, with the reason, by families."""

from __future__ import annotations

from typing import Final

from onnxprune.rules.tables import DRAWS

_STANDARD: Final = {
    "its bodies carry the channels, of whatever operators stand in them": "If Loop Scan",
    "its body is not looked into": "SequenceMap",
    "it belongs to training": "NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss",
    "it carries a state from call to call, in an order of its own": (
        "CausalConvWithState LinearAttention TensorScatter"
    ),
    "it draws random numbers": " ".join(sorted(x for x in DRAWS if "::" not in x)),
    "it makes or takes a spectrum: every index depends on every other": (
        "BlackmanWindow DFT HammingWindow HannWindow MelWeightMatrix STFT"
    ),
    "it picks at run time": "Compress NonMaxSuppression NonZero Unique",
    "it reads geometry, not channels": "AffineGrid CenterCropPad Det ImageDecoder",
    "sequences and optionals are not looked into": (
        "ConcatFromSequence Optional OptionalGetElement OptionalHasElement SequenceAt"
        " SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength"
        " SplitToSequence"
    ),
    "text carries no channels": (
        "RegexFullMatch StringConcat StringNormalizer StringSplit TfIdfVectorizer"
    ),
}
# com.microsoft. Where ONNX Runtime has no kernel for the CPU, no square can be run: a row that is
# not proved would be a guess.
_UNPROVED: Final = "ONNX Runtime has no CPU kernel for it, so that no row of it could be proved"
_CONTRIB: Final = {
    f"{_UNPROVED} (a fused bias, activation, norm or dropout of its GPU builds)": (
        "BiasAdd BiasDropout BiasSoftmax BiasSplitGelu BitmaskBiasDropout BitmaskDropout"
        " FusedMatMulActivation GemmFastGelu GroupNorm IsAllFinite SkipGroupNorm"
    ),
    f"{_UNPROVED} (attention of its GPU builds)": (
        "DecoderAttention DecoderMaskedSelfAttention DynamicSparseAttention"
        " GatedRelativePositionBias GemmaRotaryEmbedding LongformerAttention PackedAttention"
        " PackedMultiHeadAttention PackedSparseAttentionIndexer PagedAttention"
        " RelativePositionBias RemovePadding RestorePadding SparseAttentionIndexer"
        " SparsePagedAttention"
    ),
    f"{_UNPROVED} (convolutions of its Arm, mobile or GPU builds)": "NhwcConv NhwcFusedConv",
    f"{_UNPROVED} (integers and small floats of its GPU builds)": (
        "DequantizeBFP DequantizeWithOrder GemmFloat8 MatMulBlockQuantizedFp4Weight"
        " MatMulBlockQuantizedFp8Weight MatMulNBitsMlp MatMulNBitsQkv MulInteger"
        " QLinearReduceMean QOrderedAttention QOrderedGelu QOrderedLayerNormalization"
        " QOrderedLongformerAttention QOrderedMatMul QuantizeBFP QuantizeWithOrder"
        " ReduceSumInteger"
    ),
    f"{_UNPROVED} (it gathers rows for training)": "TorchEmbedding",
    "it is compiled for one device: what is inside is not to be seen": "EPContext Snpe",
    "it makes or takes a spectrum: every index depends on every other": (
        "ComplexMul ComplexMulConj Irfft Rfft"
    ),
    "its bodies generate text, word by word": (
        "BeamSearch BifurcationDetector GreedySearch NGramRepeatBlock Sampling WhisperBeamSearch"
    ),
    "its cache is a buffer that it shares with its operand, at a step of generation": (
        "SparseAttention"
    ),
    "it carries a state from call to call, in an order of its own": (
        "AttnLSTM CausalConvWithState GatedDeltaNet LinearAttention LinearAttentionGate"
        " VarlenCausalConvWithState"
    ),
    "it mixes several residual streams, which are not looked into": (
        "BranchwiseRMSNorm EngramGate GatedRMSNorm HyperConnectionPostMix HyperConnectionPreMix"
    ),
    "it turns numbers of a head by sections of three kinds of position": "MRotaryEmbedding",
    "its weight is packed in blocks that run over rows": ("MatMulBnb4 MatMulFpQ4"),
    "its tables, gains and shifts are integers with scales of their own": (
        "QEmbedLayerNormalization"
    ),
    "it picks at run time": "CropAndResize Unique",
    "it reads geometry, not channels": "CDist DynamicTimeWarping Inverse UnfoldTensor",
    "text and hashes carry no channels": (
        "MurmurHash3 NGramHashMapping Tokenizer VarlenNGramHashMapping WordConvEmbedding"
    ),
    "it is ONNX Runtime's own, from before ai.onnx had one, and no file is known to hold it": (
        "ConvTransposeWithDynamicPads ExpandDims GatherND MaxpoolWithMask Pad Range SampleOp"
        " SparseToDenseMatMul Trilu"
    ),
}
_CLASSICAL: Final = """
    ArrayFeatureExtractor Binarizer CastMap CategoryMapper DictVectorizer FeatureVectorizer Imputer
    LabelEncoder LinearClassifier LinearRegressor Normalizer OneHotEncoder SVMClassifier
    SVMRegressor Scaler TreeEnsemble TreeEnsembleClassifier TreeEnsembleRegressor ZipMap
"""
FROZEN: Final = {
    **{op: reason for reason, ops in _STANDARD.items() for op in ops.split()},
    **{f"com.microsoft::{op}": reason for reason, ops in _CONTRIB.items() for op in ops.split()},
    **{f"ai.onnx.ml::{op}": "classical models have no channels" for op in _CLASSICAL.split()},
}
