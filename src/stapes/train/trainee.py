"""What the Trainer trains: the model's forward pass with a state dict of what learns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys  # the return type of load_state_dict; there is no public name
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..model import Objective, StapesForConditionalGeneration


class Trainee(nn.Module):
    """A view of the model whose `state_dict` holds the trainable tensors only, so that checkpoints do too.

    A 3 B model with 27 M trainable parameters then saves 0.1 GB, not 6, each time.
    """

    accepts_loss_kwargs = True

    def __init__(self, model: StapesForConditionalGeneration, objective: Objective = "answer") -> None:
        super().__init__()
        self.model = model
        self.objective: Objective = objective

    def forward(self, **batch: Any) -> CausalLMOutputWithPast:
        """Run the model; while training nothing is generated, so that keys and values need not be kept.

        For all objectives but `answer` the output is the loss alone.
        """
        if self.objective != "answer":
            loss = self.model.hearing_loss(objective=self.objective, **batch)
            return CausalLMOutputWithPast(loss=cast(Any, loss))
        return self.model(use_cache=False, **batch)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]  # one form suffices
        """Return the tensors that learn, by their name in the model."""
        trainable = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        return {name: tensor for name, tensor in self.model.state_dict().items() if name in trainable}

    def load_state_dict(  # type: ignore[override]  # `assign` has no use here
        self, state_dict: Mapping[str, Tensor], strict: bool = True
    ) -> _IncompatibleKeys:
        """Load what `state_dict` returned.

        Raises:
            ValueError: if names differ, whatever `strict` says: a checkpoint of another set of trainable parts.
        """
        wanted = self.state_dict().keys()
        if wanted != state_dict.keys():
            differing = sorted(wanted ^ state_dict.keys())
            raise ValueError(f"the checkpoint holds other tensors than those that learn: {', '.join(differing[:5])} …")
        self.model.load_state_dict(state_dict, strict=False)
        return _IncompatibleKeys([], [])

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Trade compute for memory in parts that learn; frozen layers, being in eval mode, keep their activations."""
        self.model.activation_checkpointing_enable(activation_checkpointing_kwargs, every_n_layers, offload)
