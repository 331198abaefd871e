"""What is kept of a stage's inputs: sums over tokens, and a sample of those held out."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from vacc_deploy.solver.hessian import accumulate_hessian, mirror_upper


@dataclass(frozen=True)
class HeldOut:
    """Inputs that the Hessian has not seen, a sample of tokens.

    Attributes:
        inputs: [tokens, in_features], as they come from the quantized layers before.
        float_inputs: the same tokens as they come from the float layers, or None where no float
            stream is carried along.
    """

    inputs: torch.Tensor
    float_inputs: torch.Tensor | None


@dataclass
class StageStatistics:
    """Sums over the inputs of one stage.

    Attributes:
        hessian: float32 [in, in], Σ x̂ᵀx̂ over the fitted tokens, its upper triangle.
        shared_hessian: the same over the tokens that the float stream has too; None where these
            are all of them.
        cross: float32 [in, in], Σ x̂ᵀ(x − x̂) over those tokens, x from the float stream.
    """

    hessian: torch.Tensor | None = None
    shared_hessian: torch.Tensor | None = None
    cross: torch.Tensor | None = None
    _nothing: torch.Tensor | None = None
    _inputs: list[torch.Tensor] = field(default_factory=list)
    _float_inputs: list[torch.Tensor] = field(default_factory=list)

    def add_fit(
        self,
        inputs: torch.Tensor,
        float_inputs: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
    ) -> None:
        """Add fitted tokens.

        Args:
            inputs: [tokens, in], float32 or bfloat16.
            float_inputs: the float stream's inputs for the same tokens.
            weights: float32 [tokens]; each token counts by the square of its own.
        """
        size = inputs.shape[-1]  # of inputs [tokens, in]
        if self.hessian is None:
            self.hessian = torch.zeros(size, size, device=inputs.device)
            # The dtype and the width of the sample, should no token be held out.
            self._nothing = inputs.new_empty(0, size)
        # Before the weights, which multiply both factors of a product: x − x̂, [tokens, in].
        shift = None if float_inputs is None else float_inputs - inputs
        if weights is not None:
            # Off by 1/256 in bfloat16; a product of two dtypes would be ten times slower.
            weights = weights.to(inputs.dtype)[:, None]  # [tokens, 1]
            inputs = inputs * weights
        accumulate_hessian(self.hessian, inputs)
        if shift is None:
            return
        if weights is not None:
            shift = shift * weights
        product = inputs.T @ shift  # [in, in]
        # A product of bfloat16 is rounded once a batch; the batches are summed in float32.
        if self.cross is None:
            self.cross = product.float()
        else:
            self.cross.add_(product)

    def end_shared(self) -> None:
        """Note that the tokens from here on have no float stream."""
        if self.shared_hessian is None and self.cross is not None:
            assert self.hessian is not None
            self.shared_hessian = self.hessian.clone()

    def add_held_out(
        self,
        inputs: torch.Tensor,
        float_inputs: torch.Tensor | None,
        stride: int,
        *,
        first: int = 0,
    ) -> None:
        """Keep every ``stride``-th of these tokens [tokens, in], from the ``first`` on."""
        # A copy: a view would hold the whole batch in memory until the stage is complete.
        self._inputs.append(inputs[first::stride].clone())
        if float_inputs is not None:
            self._float_inputs.append(float_inputs[first::stride].clone())

    def finish(self) -> HeldOut:
        """Complete the symmetric sums that are here and return the held-out sample."""
        assert self._nothing is not None, "finish() before add_fit()"
        for matrix in (self.hessian, self.shared_hessian):
            if matrix is not None:
                mirror_upper(matrix)
        # [tokens of all batches, in]
        float_inputs = torch.cat(self._float_inputs) if self._float_inputs else None
        held_out = HeldOut(torch.cat([self._nothing, *self._inputs]), float_inputs)
        self._inputs, self._float_inputs = [], []
        return held_out
