"""What the wheel holds. Everything else about the project stands in pyproject.toml.

The Flower app (``server``, ``clients``), its pyproject.toml and the recipes lie at the root of a checkout, where Flower
and people look for them. Neither folder may be installed under its own name: any other package called ``server`` would
win, or lose, by chance. So the wheel has them as they are below ``sslmed_dist/shipped``, where they are files, not
packages that anyone imports (``sslmed_dist/installation.py``).
"""

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

SHIPPED = "sslmed_dist.shipped"


class WithoutRoot(build_py):
    """Leaves out the modules at the root of the checkout, such as this one."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """The modules of a package: (package, module, file) each."""
        return [] if package == SHIPPED else super().find_package_modules(package, package_dir)


setup(
    packages=[*find_packages(include=["sslmed_dist*"]), SHIPPED, f"{SHIPPED}.server", f"{SHIPPED}.clients"],
    package_dir={SHIPPED: "."},
    package_data={SHIPPED: ["pyproject.toml", "configs/README.md", "configs/**/*.yaml"]},
    include_package_data=False,  # with it everything that git knows would count as data of SHIPPED
    cmdclass={"build_py": WithoutRoot},
)
