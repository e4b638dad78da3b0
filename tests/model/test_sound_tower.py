"""Audio models of transformers as sound encoders: their own output, told in time at 50 Hz."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTModel,
    ClapAudioConfig,
    ClapAudioModel,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    HubertConfig,
    HubertModel,
    PreTrainedModel,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
)

from stapes.assembly import build, load_model, save_model
from stapes.compress import quantize
from stapes.errors import ModelFolderError
from stapes.model import ConnectorConfig, SoundTower, SoundTowerFeatureExtractor, describe_tower
from stapes.parts import load_encoders

AST = ASTConfig(
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=48,
    max_length=128,
    num_mel_bins=32,
    initializer_range=0.3,
)
CLAP: dict[str, Any] = {
    "spec_size": 64,
    "window_size": 2,
    "num_mel_bins": 16,
    "depths": [1, 1],
    "num_attention_heads": [2, 2],
    "patch_embeds_hidden_size": 12,
}
HUBERT = HubertConfig(
    hidden_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=48,
    conv_dim=(8,) * 7,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=2,
)
AST_FRONT_END = ASTFeatureExtractor(num_mel_bins=32, max_length=128)
CLAP_FRONT_END = ClapFeatureExtractor(feature_size=16, max_length_s=2)


def noise(num_samples: int, seed: int = 0) -> np.ndarray:
    return (np.random.RandomState(seed).standard_normal(num_samples) * 0.1).astype(np.float32)


def tower_of(model: PreTrainedModel, front_end: Any) -> tuple[SoundTower, SoundTowerFeatureExtractor]:
    settings = front_end.to_dict()
    return SoundTower(describe_tower(model.config, settings), model).eval(), SoundTowerFeatureExtractor(settings)


def seeded(make: Any, config: Any) -> Any:
    torch.manual_seed(0)
    return make(config).eval()


@torch.no_grad()
def test_ast_tells_the_bands_of_a_time_in_one_frame() -> None:
    model = seeded(ASTModel, AST)
    tower, front_end = tower_of(model, AST_FRONT_END)
    assert model.config._attn_implementation == "sdpa"
    clip = noise(128 * 160 + 16_000)  # 1.28 s, and 1 s more
    frames, mask = tower(**front_end([clip]))
    assert frames.shape == (1, 128, 24)
    assert mask.all()
    for block, samples in enumerate((clip[: 128 * 160], clip[128 * 160 :])):
        features = AST_FRONT_END(samples, sampling_rate=16_000, return_tensors="pt")
        tokens: Tensor = model(**features).last_hidden_state[0, 2:]
        # 2 bands of 16 mel bins with a stride of 10, (32 - 16) // 10 + 1, and 12 times, (128 - 16) // 10 + 1.
        assert tokens.shape == (24, 24)
        times = (tokens[:12] + tokens[12:]) / 2
        for frame in range(64):
            expected = times[int((frame + 0.5) * 12 / 64)]
            torch.testing.assert_close(frames[0, 64 * block + frame], expected, atol=1e-5, rtol=0)
    # In silence all times are alike: those of the first block tell them apart.
    assert len(frames[0, :64].unique(dim=0)) == 12


@torch.no_grad()
@pytest.mark.parametrize("fusion", [False, True])
def test_clap_hears_blocks_that_it_knows(fusion: bool) -> None:
    fuses = {"enable_fusion": True, "fusion_type": "aff_2d"} if fusion else {}
    model = seeded(ClapAudioModel, ClapAudioConfig(**CLAP, **fuses))
    front = ClapFeatureExtractor(feature_size=16, max_length_s=2, truncation="fusion" if fusion else "rand_trunc")
    tower, front_end = tower_of(model, front)
    clip = noise(3 * 16_000)  # a block of 2 s, and 1 s that is heard twice
    features = front_end([clip])
    assert features["sound_features"].shape == (1, 402, 16)
    frames, mask = tower(**features)
    assert frames.shape == (1, 200, 24)
    assert mask.all()
    views = features["sound_features"][0].unflatten(0, (2, 201))[:, None].expand(-1, 4 if fusion else 1, -1, -1)
    hidden = model(input_features=views, is_longer=torch.zeros(2, 1, dtype=torch.bool)).last_hidden_state
    assert hidden.shape == (2, 24, 2, 32)
    expected = hidden.mean(dim=2)
    for block in range(2):
        for frame in range(100):
            step = expected[block, :, int((frame + 0.5) * 32 / 100)]
            torch.testing.assert_close(frames[0, 100 * block + frame], step, atol=1e-5, rtol=0)


def test_claps_features_are_its_front_ends() -> None:
    import soxr

    front_end = SoundTowerFeatureExtractor(CLAP_FRONT_END.to_dict())
    clip = noise(16_000)
    theirs = CLAP_FRONT_END(soxr.resample(clip, 16_000, 48_000, quality="HQ"), sampling_rate=48_000)
    expected = torch.from_numpy(theirs["input_features"][0][0]).float()
    assert torch.equal(front_end([clip])["sound_features"][0], expected)


@torch.no_grad()
def test_hubert_hears_samples() -> None:
    model = seeded(HubertModel, HUBERT)
    tower, front_end = tower_of(model, Wav2Vec2FeatureExtractor())
    clip = noise(16_000)
    frames, _ = tower(**front_end([clip]))
    assert frames.shape == (1, 50, 24)
    samples = Wav2Vec2FeatureExtractor()(clip, sampling_rate=16_000, return_tensors="pt")
    expected = model(**samples).last_hidden_state[0]
    assert expected.shape == (49, 24)
    torch.testing.assert_close(frames[0, :24], expected[:24], atol=1e-5, rtol=0)
    torch.testing.assert_close(frames[0, 25:], expected[24:], atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_rest_of_a_long_clip_may_be_short() -> None:
    tower, front_end = tower_of(seeded(HubertModel, HUBERT), Wav2Vec2FeatureExtractor())
    tower.config.block_features, tower.config.block_frames = 3_200, 10
    clip = front_end([noise(3_200 + 350)])
    frames, mask = tower(**clip)
    assert (frames.shape[1], int(mask.sum())) == (11, 11)
    # What is missing of a step is silence.
    rest = torch.nn.functional.pad(clip["sound_features"][0, 3_200:3_550, 0], (0, 50))
    torch.testing.assert_close(frames[0, 10:], tower.tower(input_values=rest[None]).last_hidden_state[0])


@torch.no_grad()
@pytest.mark.parametrize(
    ("make", "config", "front_end"),
    [
        (ASTModel, AST, AST_FRONT_END),
        (ClapAudioModel, ClapAudioConfig(**CLAP), CLAP_FRONT_END),
        (HubertModel, HUBERT, Wav2Vec2FeatureExtractor()),
    ],
)
def test_a_clip_does_not_hear_its_neighbours(make: Any, config: Any, front_end: Any) -> None:
    tower, extract = tower_of(seeded(make, config), front_end)
    clips = [noise(size, seed) for seed, size in enumerate((400, 16_000, 60_000, 128 * 160 + 399))]
    frames, mask = tower(**extract(clips))
    for row, clip in enumerate(clips):
        alone, _ = tower(**extract([clip]))
        assert torch.equal(frames[row][mask[row]], alone[0])
        assert not frames[row][~mask[row]].any()


def saved(folder: Path, kind: str) -> Path:
    match kind:
        case "ast":
            seeded(ASTModel, AST).save_pretrained(folder)
            AST_FRONT_END.save_pretrained(folder)
        case "clap":
            text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
            config = ClapConfig(audio_config=CLAP, text_config={**text, "vocab_size": 20}, projection_dim=8)
            seeded(ClapModel, config).save_pretrained(folder)
            CLAP_FRONT_END.save_pretrained(folder)
        case "hubert":
            seeded(HubertModel, HUBERT).save_pretrained(folder)
            Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


@torch.no_grad()
@pytest.mark.parametrize("kind", ["ast", "clap", "hubert"])
def test_a_recipes_key_takes_it_by_name(kind: str, parts: Path, tmp_path: Path) -> None:
    folder = saved(tmp_path / kind, kind)
    connector = ConnectorConfig(kind="stacked_mlp", frames_per_window=8, hidden_size=32)
    model, processor = build(str(parts / "encoder"), str(parts / "llm"), connector, sound_encoder=str(folder))
    save_model(model, processor, tmp_path / "whole")
    save_model(model, processor, tmp_path / "trained", trained_only=True)
    inputs = processor.prepare([noise(16_000), noise(40_000, 1)], ["Hi?", "And here?"])
    logits = model(**inputs).logits
    for name in ("whole", "trained"):
        again, its_processor = load_model(tmp_path / name)
        assert torch.equal(
            again(**its_processor.prepare([noise(16_000), noise(40_000, 1)], ["Hi?", "And here?"])).logits, logits
        )
    original = {"ast": ASTModel, "clap": ClapModel, "hubert": HubertModel}[kind].from_pretrained(folder)
    weights = (original.audio_model if kind == "clap" else original).state_dict()
    assert model.sound_encoder is not None
    ours = {n.removeprefix("tower."): tensor for n, tensor in model.sound_encoder.state_dict().items()}
    assert ours.keys() == weights.keys()
    assert all(torch.equal(ours[name], weights[name]) for name in weights)


@torch.no_grad()
def test_its_linears_can_be_int8(parts: Path, tmp_path: Path) -> None:
    folder = saved(tmp_path / "ast", "ast")
    connector = ConnectorConfig(kind="stacked_mlp", frames_per_window=8, hidden_size=32)
    model, processor = build(str(parts / "encoder"), str(parts / "llm"), connector, sound_encoder=str(folder))
    save_model(model, processor, tmp_path / "whole")
    quantize(tmp_path / "whole", tmp_path / "int8")
    small, _ = load_model(tmp_path / "int8")
    assert small.sound_encoder is not None
    assert model.sound_encoder is not None
    features = {n: v for n, v in processor.prepare([noise(16_000)], ["Hi?"]).items() if n.startswith("sound")}
    found, expected = small.sound_encoder(**features)[0], model.sound_encoder(**features)[0]
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0)


def test_what_is_no_sequence_in_time_is_refused(parts: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a `wavlm` model; wanted one of audio-spectrogram-transformer, clap_audio"):
        describe_tower(WavLMConfig(), Wav2Vec2FeatureExtractor().to_dict())
    with pytest.raises(
        ValueError, match=r"its front end is a Wav2Vec2FeatureExtractor, that of a `audio-spec.* is a AST"
    ):
        describe_tower(AST, Wav2Vec2FeatureExtractor().to_dict())
    sources = {"speech_encoder": str(parts / "encoder"), "sound_encoder": str(parts / "encoder")}
    with pytest.raises(
        ModelFolderError, match="encoder: is a `whisper` model; a sound encoder must be a BEATs or an EAT"
    ):
        load_encoders(sources, None, torch.float32)
    folder = saved(tmp_path / "ast", "ast")
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    with pytest.raises(ModelFolderError, match="ast: cannot be read: its front end is a Wav2Vec2FeatureExtractor"):
        load_encoders({**sources, "sound_encoder": str(folder)}, None, torch.float32)


def test_features_of_another_front_end_are_refused() -> None:
    tower, _ = tower_of(seeded(ASTModel, AST), AST_FRONT_END)
    with pytest.raises(
        ValueError, match=r"sound_features has shape \[1, 128, 128\], the sound encoder wants \(B, F, 32\)"
    ):
        tower(torch.zeros(1, 128, 128))
