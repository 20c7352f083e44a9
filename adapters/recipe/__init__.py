"""The recipe that trains the demonstration base model and its LoRA adapters from MedQuAD.

Run it as ``python -m adapters.recipe --help``. The ``hlo`` package never imports it.
"""
