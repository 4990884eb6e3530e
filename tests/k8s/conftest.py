"""Shared by the tests of the manifests: kustomize, and every overlay that it renders."""

from __future__ import annotations

import pytest
from tests.k8s.kube import Doc, Kustomize, kubectl


@pytest.fixture(scope="session")
def kustomize(tmp_path_factory: pytest.TempPathFactory) -> Kustomize:
    return Kustomize(kubectl(tmp_path_factory.mktemp("kubectl")))


@pytest.fixture(scope="session")
def local(kustomize: Kustomize) -> list[Doc]:
    return kustomize.whole("local")


@pytest.fixture(scope="session")
def gpu(kustomize: Kustomize) -> list[Doc]:
    return kustomize.whole("gpu")
