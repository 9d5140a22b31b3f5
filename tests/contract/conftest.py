"""What several suites of this folder stand on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from moto import mock_aws

from tests.actuator_stand import REGION


@pytest.fixture
def cloud() -> Iterator[Any]:
    """EC2 as moto plays it."""
    with mock_aws():
        client = boto3.client("ec2", region_name=REGION)
        yield client
        client.close()
