// Package cli is what the commands share: exit statuses, one line for each
// error, signals, logs, and tables for people.
//
// Exit status is 0, 1 for a failure, 2 for a wrong command line. A command's
// RunE returns an error and prints none; [Main] prints it as one line on
// standard error. An error of kind cfs.Usage, and whatever cobra finds wrong
// before RunE starts, is a wrong command line.
package cli
