"""What was done, told in several formats: the terminal's tables, JSON, Markdown, JUnit XML, one HTML page.

All are fed from one plain-data :class:`bnfold.report.document.Document`. Names in it come from the model and thus from
whoever made it, so each format escapes them in its own way; :mod:`bnfold.report.escape` is the one home of that.
"""
