"""The paper's tables and figures from run folders and a data set, as numbers, a sentence and a picture.

Nothing trains here. `optimum` is x* of Eq. 4, `subject` what is looked at, `kinds` the list of what can be
made of it and how that is reported; every other file measures and draws what it is named after.
"""
