"""The model, its configuration and its processor, known to transformers' Auto classes."""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoProcessor,
)

from .alphabets import letter_numbers, phone_numbers
from .beats import BeatsConfig, BeatsEncoder, BeatsFeatureExtractor
from .configuration import ConnectorConfig, StapesConfig, num_audio_tokens
from .ctc_compressor import CTCCompressor, Heard, Objective
from .ctc_guide import CTCGuide, Listener
from .ctc_vocabulary import CTCVocabulary
from .drafts import DraftedDecoding
from .eat import EatConfig, EatEncoder, EatFeatureExtractor
from .families import FAMILIES, Family, find_family, find_reserved_tokens
from .heard_pieces import Dictation, PieceListener, TokenPieces
from .modeling import StapesForConditionalGeneration
from .processing import StapesFeatureExtractor, StapesProcessor
from .sound_tower import TOWER_TYPES, SoundTower, SoundTowerConfig, SoundTowerFeatureExtractor, describe_tower
from .transcripts import TranscriptChooser
from .word_list import WordList
from .word_search import HeardText, search_phones, search_words

AutoConfig.register(StapesConfig.model_type, StapesConfig)
AutoModelForCausalLM.register(StapesConfig, StapesForConditionalGeneration)
AutoModelForMultimodalLM.register(StapesConfig, StapesForConditionalGeneration)
AutoFeatureExtractor.register(StapesConfig, StapesFeatureExtractor)
AutoProcessor.register(StapesConfig, StapesProcessor)
AutoConfig.register(BeatsConfig.model_type, BeatsConfig)
AutoModel.register(BeatsConfig, BeatsEncoder)
AutoFeatureExtractor.register(BeatsConfig, BeatsFeatureExtractor)
AutoConfig.register(EatConfig.model_type, EatConfig)
AutoModel.register(EatConfig, EatEncoder)
AutoFeatureExtractor.register(EatConfig, EatFeatureExtractor)
AutoConfig.register(SoundTowerConfig.model_type, SoundTowerConfig)
AutoModel.register(SoundTowerConfig, SoundTower)
AutoFeatureExtractor.register(SoundTowerConfig, SoundTowerFeatureExtractor)

__all__ = [
    "FAMILIES",
    "TOWER_TYPES",
    "BeatsConfig",
    "BeatsEncoder",
    "BeatsFeatureExtractor",
    "CTCCompressor",
    "CTCGuide",
    "CTCVocabulary",
    "ConnectorConfig",
    "Dictation",
    "DraftedDecoding",
    "EatConfig",
    "EatEncoder",
    "EatFeatureExtractor",
    "Family",
    "Heard",
    "HeardText",
    "Listener",
    "Objective",
    "PieceListener",
    "SoundTower",
    "SoundTowerConfig",
    "SoundTowerFeatureExtractor",
    "StapesConfig",
    "StapesFeatureExtractor",
    "StapesForConditionalGeneration",
    "StapesProcessor",
    "TokenPieces",
    "TranscriptChooser",
    "WordList",
    "describe_tower",
    "find_family",
    "find_reserved_tokens",
    "letter_numbers",
    "num_audio_tokens",
    "phone_numbers",
    "search_phones",
    "search_words",
]
