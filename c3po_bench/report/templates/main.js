// Starts the page.
"use strict";

setUpTheme(redrawCharts);
setUpCharts();
setUpComparison();
setUpAblation();
setUpHints();
setUpCopying();
setUpExplorer();
