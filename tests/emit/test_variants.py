"""Which kernels a decay for every token, and another head layout, need of their own."""

from __future__ import annotations

import numpy as np
import pytest

from ssdgen.emit import kernel as kernels
from ssdgen.pack import templates
from ssdgen.plan import catalogue
from ssdgen.plan.ir import Kernel
from ssdgen.plan.launch_backward import How
from ssdgen.plan import interpret
from ssdgen.spec import oracle_gradient
from ssdgen.spec.layer import Layer
from ssdgen.spec.layouts import LAYOUTS, MULTI_HEAD
from ssdgen.spec.masks import GATED, NONE, SSD
from tests.emit import sources
