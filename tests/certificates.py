# SPDX-License-Identifier: Apache-2.0
"""Certificates of a CA that a test makes."""

from __future__ import annotations

import subprocess
from pathlib import Path


def certificates(folder: Path, addresses: dict[str, str]) -> None:
    """Make a folder with a CA (ca.pem), and for each host NAME.pem and NAME.key for its name and its address."""
    folder.mkdir()

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=lepton test", "-days", "2")
    for name, address in addresses.items():
        openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (folder / "names").write_text(f"subjectAltName=DNS:{name},IP:{address}\n")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-days", "2", "-extfile", "names", "-out", f"{name}.pem")
