"""Every test sees eight virtual CPU devices, and shapes are checked where functions of arrays begin; set before either is imported."""

import os

from hypothesis import settings
from jaxtyping import install_import_hook

os.environ["JAX_PLATFORMS"] = "cpu"
# Programs that run once are not worth optimising.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
_TYPED = ["model", "training.step", "training.sharding", "training.optimizer", "inference", "interop"]
install_import_hook([f"gristmill.{module}" for module in _TYPED], "beartype.beartype")

# How long an example takes says nothing of what it claims, and machines are busy at times.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
