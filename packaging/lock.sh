#!/usr/bin/env bash
# Renews requirements.lock and requirements-dev.lock from pyproject.toml. Needs pip-tools on PATH; run it with Python 3.11.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
common=(-q --no-header --no-emit-index-url --no-emit-trusted-host --no-emit-find-links
  --generate-hashes --allow-unsafe --strip-extras --no-annotate)
pip-compile "${common[@]}" --extra agent --extra build -o requirements.lock pyproject.toml
pip-compile "${common[@]}" --extra agent --extra dev -o requirements-dev.lock pyproject.toml
