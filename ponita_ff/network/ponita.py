"""The network in its force-field form: a graph in, atomic energies out. Nothing here differentiates or knows units."""

from __future__ import annotations

from ponita_ff.network.config import PonitaConfig
from ponita_ff.network.convolution import SeparableConvolution
from ponita_ff.network.grid import GridForm

__all__ = ["Ponita"]


class Ponita(GridForm):
    """PONITA in its force-field form: kernels are expanded in Legendre polynomials (arXiv:2310.02970).

    f_i(n) = embedding of the element; then blocks (block.py), each followed by a linear read-out; the energy of an atom
    is the mean over blocks of the read-outs' mean over orientations, Σ_n q(n) (W f_i(n) + b).
    """

    config: PonitaConfig

    def neighbour_sum(self) -> SeparableConvolution:
        """See :class:`SeparableConvolution`."""
        config = self.config
        return SeparableConvolution(
            config.channels, config.l_max, config.radial_basis, self.expected_neighbours, bool(config.num_ori)
        )
