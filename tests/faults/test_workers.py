"""Two workers on one job, while what they need fails: nothing is lost, nothing is different.

The parts are real: Celery workers in processes of their own, Redis, PostgreSQL. The store is a
Qdrant server where PRECEDENT_TEST_QDRANT_URL names one, else the loopback stand-in of the
contract tests.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from contract.loopback import Loopback
from engine.model.checkpoint import save_checkpoint
from engine.model.config import KanHash, MlpHash  # noqa: F401
from engine.settings import Settings
from indexer.archive import Archive
from indexer.database import Database, open_database
from indexer.jobs.ledger import JobLedger
from indexer.jobs.records import JobOptions
from indexer.run import index_archive
from indexer.sources.opening import SourceSpec
from services.brokers import RabbitMQ, Redis
from services.postgres import Postgres

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

INSTANCES = 2000
PATIENCE_SECONDS = 240
AT = "2026-01-01T00:00:00+00:00"
"""What is left of a fault is waited for this long: many times what the work takes."""
