"""Make docs/report.png, the picture of a report in the README: needs Chromium and Pillow.

python docs/screenshot.py
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WIDTH, HEIGHT = 1280, 1760
NET = '''
import torch
from torch import nn


class Net(nn.Module):
    """A BatchNorm that passes a pool, one on a branch, one in two branches, and one that cannot move."""

    def __init__(self):
        super().__init__()
        conv = nn.Conv2d(3, 16, 7, stride=2, padding=3)
        self.stem = nn.Sequential(conv, nn.MaxPool2d(3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.identity = nn.BatchNorm2d(16)
        self.conv3 = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16))
        self.last = nn.Sequential(nn.GELU(), nn.BatchNorm2d(16), nn.GELU())
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = self.stem(x)
        x = self.last(self.identity(x) + self.conv3(x))
        return self.head(x.mean((2, 3)))


def make():
    torch.manual_seed(3)
    net = Net().eval()
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_(0, 0.3)
                layer.running_var.uniform_(0.3, 2)
                layer.weight.uniform_(0.3, 1.5)
                layer.bias.normal_(0, 0.3)
        net.identity.weight[[2, 9]] *= -1
        net.last[1].weight[5] = 1e-5
    return net
'''


def main() -> int:
    """Fold a small network in an empty folder, open its report, and keep a picture of it."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        print("Chromium is not installed.", file=sys.stderr)
        return 1
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "net.py").write_text(NET, encoding="utf-8")
        bnfold = [sys.executable, str(ROOT / "cli.py")]
        options = ["--input-shape", "2,3,64,64", "-o", "net.onnx", "--report", "report.html", "-q"]
        subprocess.run([*bnfold, "fold", "net.py:make", *options], cwd=folder, check=True)
        shot = Path(folder) / "report.png"
        browser = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        page = (Path(folder) / "report.html").as_uri()
        size = f"--window-size={WIDTH},{HEIGHT}"
        subprocess.run([*browser, f"--user-data-dir={folder}/profile", size, f"--screenshot={shot}", page], check=True)
        Image.open(shot).convert("P", palette=Image.Palette.ADAPTIVE, colors=256).save(
            ROOT / "docs" / "report.png", optimize=True
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
