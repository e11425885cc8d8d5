from setuptools import Extension, find_packages, setup

# Plain C libraries that ctypes loads. Without a compiler the installation goes on; `dinowds doctor` then says so.
crops = Extension(
    "dinowds.crops._kernels",
    [f"dinowds/crops/{name}.c" for name in ("kernels", "kernels_v3", "kernels_v4")],
    depends=["dinowds/crops/kernels.c"],
    optional=True,
    libraries=["m"],
    # No fused multiply-add, so that all processors make the same bytes.
    extra_compile_args=[
        "-std=c11",
        "-O3",
        "-ffp-contract=off",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-fno-signed-zeros",
        "-ffinite-math-only",
    ],
)
shard = Extension(
    "dinowds.shard._kernels",
    ["dinowds/shard/kernels.c", "dinowds/shard/sha256.c"],
    optional=True,
    extra_compile_args=["-std=c11", "-O3", "-fvisibility=hidden"],
)
setup(
    packages=[*find_packages(include=["dinowds", "dinowds.*"]), "dinowds.cli", "dinowds.configs"],
    ext_modules=[crops, shard],
)
