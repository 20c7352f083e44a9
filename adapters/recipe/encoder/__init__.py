"""The recipe that fine-tunes the sentence encoder ``models/hlo-encoder``.

Run it as ``python -m adapters.recipe.encoder --help``. The ``hlo`` package never imports it.
"""
