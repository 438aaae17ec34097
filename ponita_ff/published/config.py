"""Everything that fixes the shape of the published network."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ponita_ff.network.config import MAX_LAYERS, check_num_weights

__all__ = ["PublishedConfig", "num_features"]


class PublishedConfig(BaseModel):
    """Everything that fixes the published network's shape. Refuses unknown and out-of-range values by field name.

    Attributes:
        cutoff: Radius of the neighbourhood, Å; None where all pairs of a molecule interact.
        num_ori: Orientations in the grid, or 0 for PNITA on R³.
        channels: Feature channels at every atom and orientation.
        num_layers: ConvNeXt blocks.
        basis_dim: Functions that the kernels of all layers combine.
        degree: Highest degree of the polynomial features.
        widening: Hidden width of a block over ``channels``.
        multiple_readouts: A read-out after every layer, or after the last only.
        envelope_power: p of :func:`ponita_ff.network.radial.envelope`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    form: Literal["published"] = "published"
    cutoff: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = None
    num_ori: Annotated[int, Field(ge=0, le=10_000)] = 20
    channels: Annotated[int, Field(ge=1)] = 128
    num_layers: Annotated[int, Field(ge=1, le=MAX_LAYERS)] = 5
    basis_dim: Annotated[int, Field(ge=1)] = 256
    degree: Annotated[int, Field(ge=1, le=10)] = 3
    widening: Annotated[int, Field(ge=1)] = 4
    multiple_readouts: bool = True
    envelope_power: Annotated[int, Field(ge=1, le=1000)] = 6

    @model_validator(mode="after")
    def _of_bounded_size(self) -> Self:
        check_num_weights(self.num_weights(1))
        return self

    @property
    def grid_size(self) -> int:
        """Orientations in the grid that a file holds; 1, of no meaning, where there is none."""
        return max(self.num_ori, 1)

    def num_weights(self, num_species: int) -> int:
        """Number of weights of a network of this shape."""
        channels, basis, hidden, fibre = self.channels, self.basis_dim, self.channels * self.widening, self.num_ori > 0
        kernel_bases = sum(
            (num_features(attributes, self.degree) + 1) * channels + (channels + 1) * basis
            for attributes in ((2, 1) if fibre else (1,))
        )
        convolution = (2 if fibre else 1) * basis * channels + channels
        mixing = 2 * channels + (channels + 1) * hidden + (hidden + 1) * channels
        readouts = (self.num_layers if self.multiple_readouts else 1) * (channels + 1)
        return num_species * channels + kernel_bases + self.num_layers * (convolution + mixing) + readouts


def num_features(attributes: int, degree: int) -> int:
    """Number of polynomial features of so many attributes."""
    return sum(attributes**power for power in range(1, degree + 1))
