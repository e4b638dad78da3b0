"""The model, its configuration and its processor, known to transformers' Auto classes."""

from transformers import AutoConfig, AutoFeatureExtractor, AutoModelForCausalLM, AutoModelForMultimodalLM, AutoProcessor

from .configuration import ConnectorConfig, StapesConfig, num_audio_tokens
from .ctc_compressor import CTCCompressor
from .ctc_vocabulary import CTCVocabulary
from .modeling import StapesForConditionalGeneration
from .processing import StapesFeatureExtractor, StapesProcessor, find_reserved_tokens

AutoConfig.register(StapesConfig.model_type, StapesConfig)
AutoModelForCausalLM.register(StapesConfig, StapesForConditionalGeneration)
AutoModelForMultimodalLM.register(StapesConfig, StapesForConditionalGeneration)
AutoFeatureExtractor.register(StapesConfig, StapesFeatureExtractor)
AutoProcessor.register(StapesConfig, StapesProcessor)

__all__ = [
    "CTCCompressor",
    "CTCVocabulary",
    "ConnectorConfig",
    "StapesConfig",
    "StapesFeatureExtractor",
    "StapesForConditionalGeneration",
    "StapesProcessor",
    "find_reserved_tokens",
    "num_audio_tokens",
]
