"""``scale-vqa export verl`` under its earlier name, ``python training_recipes/verl_export.py``."""

from training_recipes.export import verl as main

if __name__ == "__main__":
    from training_recipes.run import report_errors

    report_errors(main)
