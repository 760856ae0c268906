"""The paper's tables and figures from run folders and a data set: numbers, a sentence, a picture. No training.

`optimum` is x* of Eq. 4; `subject` what is looked at; `findings` how it is reported; every other file measures
and draws what it is named after, and `kinds` lists them.
"""
