"""The kernels, one per file.  Each is imported when it is first launched: most calls need a few of them."""

from importlib import import_module
from types import ModuleType

_NAMES = frozenset(
    (
        "adjoint_passing",
        "chunk_adjoints",
        "chunk_adjoints_1consumer",
        "chunk_adjoints_2consumers",
        "chunk_adjoints_2n",
        "chunk_adjoints_2n_1consumer",
        "chunk_adjoints_2n_2consumers",
        "chunk_gradients",
        "chunk_gradients_2consumers",
        "chunk_gradients_2n",
        "chunk_gradients_2n_2p",
        "chunk_gradients_2p",
        "chunk_scan",
        "chunk_scan_2n",
        "chunk_scan_2n_2p",
        "chunk_scan_2p",
        "chunk_states",
        "chunk_states_1consumer",
        "chunk_states_2consumers",
        "chunk_states_2n",
        "chunk_states_2n_1consumer",
        "chunk_states_2n_2consumers",
        "dt_cumsum",
        "dt_gradients",
        "dt_gradients_blocks",
        "group_gradients",
        "group_gradients_2n",
        "group_gradients_2n_2p",
        "group_gradients_2p",
        "group_gradients_2p_blocks",
        "group_gradients_2p_blocks_2consumers",
        "group_gradients_blocks",
        "group_gradients_blocks_2consumers",
        "reverse_walk",
        "reverse_walk_2n",
        "reverse_walk_2n_2p",
        "reverse_walk_2n_blocks",
        "reverse_walk_2n_blocks_2consumers",
        "reverse_walk_2p",
        "reverse_walk_4n_blocks_2consumers",
        "reverse_walk_blocks",
        "segment_adjoint",
        "segment_adjoint_1consumer",
        "segment_adjoint_2consumers",
        "segment_adjoint_2n",
        "segment_adjoint_2n_1consumer",
        "segment_adjoint_2n_2consumers",
        "segment_state",
        "segment_state_1consumer",
        "segment_state_2consumers",
        "segment_state_2heads_tma",
        "segment_state_2n",
        "segment_state_2n_1consumer",
        "segment_state_2n_2consumers",
        "segment_state_2n_2p",
        "segment_state_2p",
        "segment_state_4heads_tma",
        "segment_state_pmajor",
        "segment_state_pmajor_tma",
        "segment_state_tma",
        "single_pass",
        "single_pass_2heads_tma",
        "single_pass_2n",
        "single_pass_2n_2p",
        "single_pass_2n_2p_inline",
        "single_pass_2n_2terms_1consumer",
        "single_pass_2n_2terms_2consumers",
        "single_pass_2n_inline",
        "single_pass_2p",
        "single_pass_2p_inline",
        "single_pass_2terms_1consumer",
        "single_pass_2terms_2consumers",
        "single_pass_inline",
        "single_pass_pmajor",
        "single_pass_pmajor_tma",
        "single_pass_tma",
        "state_passing",
    )
)


class _Later(ModuleType):
    """A kernel's module by name, until something in it is asked for."""

    def __getattr__(self, name):
        # the import system lets threads wait for each other
        return getattr(import_module(self.__name__), name)


def __getattr__(name):
    if name in _NAMES:
        return _Later(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
