"""Make a student: kdep | fit-alignment | import-alignment | resume | smoke. The same as `stillroom-distill`."""

from stillroom.distill.cli import main

if __name__ == "__main__":
    main()
