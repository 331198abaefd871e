"""Run the command line as ``python -m vacc_deploy``."""

from vacc_deploy.cli import main

if __name__ == "__main__":
    main()
