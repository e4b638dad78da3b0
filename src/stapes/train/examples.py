"""Training and validation examples: read, augment, transform, or take from the cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from ..data import augment as effects
from ..data.augment import sample_seed
from ..data.collator import Example
from ..data.mixture import Draw
from ..data.noise import list_recordings
from ..data.prompts import refuse_audio_token, test_instruction, train_instruction
from ..data.sample import Sample, load_sample_audio, transcript_of
from ..errors import ManifestError
from ..model import StapesProcessor
from ..recipe import Augment
from .features import FeatureCache, feature_path


class Examples(Dataset[Example]):
    """Samples of several manifests, addressed by `Draw(corpus, index, draw)`.

    What an example looks like depends on the seed, its sample's id and its draw count alone, never on order or process:
    resumed and uninterrupted runs see the same data.

    Args:
        corpora: the samples of each manifest.
        processor: of the model that is trained.
        seed: of the run.
        augment: None for no augmentation.
        cache: stored encoder output; with it each sample has `augment.copies` versions that take turns.
        train: vary the wording of instructions; False takes the test wording.

    Raises:
        ManifestError: if a question or a target holds the audio token.
    """

    def __init__(
        self,
        corpora: Sequence[Sequence[Sample]],
        processor: StapesProcessor,
        seed: int,
        augment: Augment | None = None,
        cache: FeatureCache | None = None,
        train: bool = True,
    ) -> None:
        for sample in (sample for corpus in corpora for sample in corpus):
            for what, text in (("question", sample.prompt or ""), ("target", sample.target)):
                where = f"{sample.where}: sample `{sample.id}`: the {what}"
                refuse_audio_token(text, processor.audio_token, where, ManifestError)
        self.corpora = corpora
        self.processor = processor
        self.seed = seed
        self.augment = augment
        self.cache = cache
        self.train = train
        self._effects = waveform_effects(augment) if augment else []
        # None where nothing is changed before the encoder: its output is then that of the clip as it is.
        self._augment_identity = (
            augment_identity(augment) if augment and (self._effects or augment.spec_augment) else None
        )

    def __len__(self) -> int:
        return sum(len(corpus) for corpus in self.corpora)

    def __getitem__(self, draw: Draw) -> Example:
        sample = self.corpora[draw.corpus][draw.index]
        wording_seed = sample_seed(self.seed, sample.id, draw.draw)
        instruction = train_instruction(sample, wording_seed) if self.train else test_instruction(sample)
        transcript = transcript_of(sample)
        if self.cache is None:
            return Example(instruction, sample.target, transcript=transcript, **self.features(draw))
        frames = self.cache.load(self.cache_path(draw))
        if self.augment is not None and (section := self.augment.frames) is not None:
            seed = sample_seed(self.seed, sample.id, draw.draw)
            frames = effects.augment_frames(frames, section.noise_std, section.masks.model_dump(), seed)
        return Example(instruction, sample.target, encoder_frames=frames, transcript=transcript)

    def draws(self) -> list[Draw]:
        """List every sample once, in order."""
        return [Draw(corpus, index, 0) for corpus, own in enumerate(self.corpora) for index in range(len(own))]

    def features(self, draw: Draw) -> dict[str, Tensor]:
        """Compute the (augmented) features of one draw.

        Returns:
            `input_features` (M, F), and `sound_features` (F', M') if the model has a sound encoder. SpecAugment masks
            the former only.
        """
        sample = self.corpora[draw.corpus][draw.index]
        waveform = load_sample_audio(sample)
        if self.augment is None:
            return self._features(waveform)
        seed = sample_seed(self.seed, sample.id, self.version(draw))
        waveform = effects.augment(waveform, self._effects, seed)
        features = self._features(waveform)
        if (masks := self.augment.spec_augment) is not None:
            log_mel = features["input_features"]
            features["input_features"] = effects.spec_augment(log_mel, **masks.model_dump(), seed=seed)
        return features

    def _features(self, waveform: np.ndarray) -> dict[str, Tensor]:
        found = self.processor.feature_extractor([waveform])
        return {name: features[0] for name, features in found.items() if not name.endswith("_mask")}

    def version(self, draw: Draw) -> int:
        """Tell which augmented version of its sample a draw sees: a new one each time, or one of `copies` if cached.

        There is one alone where nothing is changed before the encoder.
        """
        if self.augment is None or self._augment_identity is None:
            return 0
        return draw.draw % self.augment.copies if self.cache is not None else draw.draw

    def cache_path(self, draw: Draw) -> Path:
        """Tell where the encoder output of one draw is stored."""
        assert self.cache is not None
        sample = self.corpora[draw.corpus][draw.index]
        augmentation = None
        if self._augment_identity is not None:
            augmentation = (self._augment_identity, self.seed, sample.id, self.version(draw))
        return feature_path(self.cache.folder, (sample.audio, *sample.extra_audio), augmentation)


def waveform_effects(section: Augment) -> list[effects.Effect]:
    """List the waveform effects a recipe's `augment` section asks for, in the order in which they are applied."""
    chosen: list[effects.Effect] = []
    if section.speed:
        chosen.append(effects.Speed(**section.speed.model_dump()))
    if section.reverb:
        chosen.append(effects.Reverb(**section.reverb.model_dump()))
    if section.noise:
        chosen.append(effects.Noise(**section.noise.model_dump()))
    if section.band_pass:
        chosen.append(effects.BandPass(**section.band_pass.model_dump()))
    if section.codec:
        chosen.append(effects.Codec(**section.codec.model_dump()))
    if section.gain:
        chosen.append(effects.Gain(**section.gain.model_dump()))
    return chosen


def augment_identity(section: Augment) -> str:
    """Name an augmentation by its settings and the recordings it takes; what is not stored changes none."""
    recordings = []
    for effect in (section.noise, section.reverb):
        if effect is not None and effect.folder is not None:
            recordings += [
                (str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in list_recordings(effect.folder)
            ]
    return f"{section.model_dump_json(exclude={'copies', 'frames'})} {recordings}"
