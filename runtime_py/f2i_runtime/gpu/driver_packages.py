"""The Debian packages that the software drivers come in, each pinned by its place in Debian's pool and its SHA-256.

They are of Debian 12 and its backports: their libraries need no more than glibc 2.36. What every Linux has is left out (the C and C++ libraries), and so
is what the drivers link to for hardware and windows only.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from f2i_runtime.debian import Package


def _pinned(filename: str, sha256: str) -> Package:
    name, version, _ = PurePosixPath(filename).name.split("_")
    return Package(name, version, (), filename, sha256)


SWIFTSHADER: tuple[Package, ...] = (
    _pinned(
        "pool/main/c/chromium/chromium-common_150.0.7871.100-1~deb12u1_amd64.deb",
        "31326f6b71ce20a52e7bea9792bf7135d4ff802e1cdbc250960b1b46729998d2",
    ),
)
"""Chromium's own copy: of its package one library is kept."""
LAVAPIPE: tuple[Package, ...] = (
    _pinned(
        "pool/main/m/mesa/mesa-vulkan-drivers_25.0.7-2~bpo12+1_amd64.deb",
        "3899f1800424c60a05df5d6913076a526ca8fdbabec43672cd397563d1ca3263",
    ),
    _pinned(
        "pool/main/v/vulkan-loader/libvulkan1_1.3.239.0-1_amd64.deb",
        "622f28b807ba55a1f5ad1622ff83aa2c5b11fedbec074850e04c10a8f28b43d3",
    ),
    _pinned(
        "pool/main/libd/libdrm/libdrm2_2.4.123-1~bpo12+1_amd64.deb",
        "9cc2f341964286295124a32d3625edb76730500625e54a1e682761f883064d7b",
    ),
    _pinned(
        "pool/main/e/expat/libexpat1_2.5.0-1+deb12u2_amd64.deb",
        "2255e62fc22a86d2c544b8a3f516da9aee19383ad5742722ab4ce7f66a30dbc8",
    ),
    _pinned(
        "pool/main/l/llvm-toolchain-15/libllvm15_15.0.6-4+b1_amd64.deb",
        "9f0751109ba89e65b1313a4f3e34a29977a0db6fa30ed475e2c6bd555fa9e866",
    ),
    _pinned(
        "pool/main/w/wayland/libwayland-client0_1.23.0-1~bpo12+1_amd64.deb",
        "0f00e0f00b8746d6a02fbe6c91708d290c26271883778c555569444f97028d9c",
    ),
    _pinned(
        "pool/main/libx/libx11/libx11-xcb1_1.8.4-2+deb12u2_amd64.deb",
        "f5da45e1d881a793250a96613f28c471a248877f1a0f18a5c90e2a620a76c898",
    ),
    _pinned(
        "pool/main/libx/libxcb/libxcb-dri3-0_1.15-1_amd64.deb",
        "02699b144b9467de8636d27a76984b8f4e7b66e2d25d96df2b9677be86ee9a29",
    ),
    _pinned(
        "pool/main/libx/libxcb/libxcb-present0_1.15-1_amd64.deb",
        "89383e627a4d17b9390d609b2459481bfd2029566367b43068586769e418b6e5",
    ),
    _pinned(
        "pool/main/libx/libxcb/libxcb-randr0_1.15-1_amd64.deb",
        "f86e3d8ff8622871008833e9d064919b7a6237399c903c59fc330ff00f199ff5",
    ),
    _pinned(
        "pool/main/libx/libxcb/libxcb-shm0_1.15-1_amd64.deb",
        "c1afcef29dc78b95c475159b181b28b1dedaf1d5aa06efd2fa6d90c73bfbe0e5",
    ),
    _pinned(
        "pool/main/libx/libxcb/libxcb-sync1_1.15-1_amd64.deb",
        "3366ce715220d38dd0148b78a8e738137bade25ef7eec0698850c6f66800844f",
    ),
    _pinned(
        "pool/main/libx/libxcb/libxcb-xfixes0_1.15-1_amd64.deb",
        "d744a7ebad2cbcf301c96cd6a1ab3ee856e436fc7be5cff5b7c28ac2ac181a64",
    ),
    _pinned(
        "pool/main/libx/libxcb/libxcb1_1.15-1_amd64.deb",
        "fdc61332a3892168f3cc9cfa1fe9cf11a91dc3e0acacbc47cbc50ebaa234cc71",
    ),
    _pinned(
        "pool/main/libx/libxshmfence/libxshmfence1_1.3-1_amd64.deb",
        "1a38142e40e3d32dc4f9a326bf5617363b7d9b4bb762fdcdd262f2192092024d",
    ),
    _pinned(
        "pool/main/libz/libzstd/libzstd1_1.5.4+dfsg2-5_amd64.deb",
        "6315b5ac38b724a710fb96bf1042019398cb656718b1522279a5185ed39318fa",
    ),
    _pinned(
        "pool/main/z/zlib/zlib1g_1.2.13.dfsg-1_amd64.deb",
        "d7dd1d1411fedf27f5e27650a6eff20ef294077b568f4c8c5e51466dc7c08ce4",
    ),
    _pinned(
        "pool/main/libe/libedit/libedit2_3.1-20221030-2_amd64.deb",
        "1cf14abf2716d3279db12d0657a5737cf70074a1e71d3bdf73206625e3c89ce6",
    ),
    _pinned(
        "pool/main/libf/libffi/libffi8_3.4.4-1_amd64.deb",
        "6d9f6c25c30efccce6d4bceaa48ea86c329a3432abb360a141f76ac223a4c34a",
    ),
    _pinned(
        "pool/main/n/ncurses/libtinfo6_6.4-4_amd64.deb",
        "072d908f38f51090ca28ca5afa3b46b2957dc61fe35094c0b851426859a49a51",
    ),
    _pinned(
        "pool/main/libx/libxml2/libxml2_2.9.14+dfsg-1.3~deb12u6_amd64.deb",
        "4460e39dda10a815881374217cde08474747cfa018358cd8612c14b390eff53b",
    ),
    _pinned(
        "pool/main/z/z3/libz3-4_4.8.12-3.1_amd64.deb",
        "6221ca25ad5abcfbe1965801029d85a88b4775320384b4b716de8fab7a4d2f7a",
    ),
    _pinned(
        "pool/main/libx/libxau/libxau6_1.0.9-1_amd64.deb",
        "679db1c4579ec7c61079adeaae8528adeb2e4bf5465baa6c56233b995d714750",
    ),
    _pinned(
        "pool/main/libx/libxdmcp/libxdmcp6_1.1.2-3_amd64.deb",
        "ecb8536f5fb34543b55bb9dc5f5b14c9dbb4150a7bddb3f2287b7cab6e9d25ef",
    ),
    _pinned(
        "pool/main/libb/libbsd/libbsd0_0.11.7-2_amd64.deb",
        "bb31cc8b40f962a85b2cec970f7f79cc704a1ae4bad24257a822055404b2c60b",
    ),
    _pinned(
        "pool/main/i/icu/libicu72_72.1-3+deb12u1_amd64.deb",
        "f7f6f99c6d7b025914df2447fc93e11d22c44c0c8bdd8b6f36691c9e7ddcef88",
    ),
    _pinned(
        "pool/main/x/xz-utils/liblzma5_5.4.1-1+deb12u1_amd64.deb",
        "f96d8876b53ec89d76a992bc199679b818cf518225a768954d9451fb556a4eb7",
    ),
    _pinned(
        "pool/main/libm/libmd/libmd0_1.0.4-2_amd64.deb",
        "03539fd30c509e27101d13a56e52eda9062bdf1aefe337c07ab56def25a13eab",
    ),
)
"""Mesa's driver for processors without a GPU, the Vulkan loader, and what they link to."""
_LIBRARIES = ("usr/lib/x86_64-linux-gnu/", "lib/x86_64-linux-gnu/")
_SWIFTSHADER_FILES = ("usr/lib/chromium/libvk_swiftshader.so",)
_OTHER_DRIVERS = ("libvulkan_intel", "libvulkan_radeon", "libvulkan_nouveau", "libvulkan_virtio", "libvulkan_gfxstream", "libVkLayer")


def is_needed(path: str) -> bool:
    """Returns whether a file of a package is unpacked: the libraries themselves, and the licence that came with them."""
    if path.startswith("usr/share/doc/") and path.endswith("/copyright"):
        return True
    name = PurePosixPath(path).name
    library = path.startswith(_LIBRARIES) and ".so" in name and not name.startswith(_OTHER_DRIVERS)
    return library or path in _SWIFTSHADER_FILES
