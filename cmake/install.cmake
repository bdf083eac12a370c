# `cmake --install`: the library, its header, a package for find_package(gsb_vit) and one for pkg-config.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

# The number of the ABI. It goes up with a release in which a program that was built before would no longer run: a function
# or a field is gone, moved or of another type. Structs are returned by value, so a new field counts, too.
set(abi 0)
if(GSB_VIT_SHARED)
  target_compile_definitions(gsb_vit PRIVATE GSB_VIT_SHARED)
  set_target_properties(gsb_vit PROPERTIES VERSION ${PROJECT_VERSION} SOVERSION ${abi} VISIBILITY_INLINES_HIDDEN ON)
  if(NOT APPLE)
    # Also what the C++ library's templates leave in every object. The node's name is part of a symbol's version.
    set(map ${CMAKE_CURRENT_BINARY_DIR}/gsb_vit.map)
    file(WRITE ${map} "GSB_VIT_${abi} { global: gsb_vit_*; local: *; };\n")
    target_link_options(gsb_vit PRIVATE -Wl,--version-script=${map} -Wl,--no-undefined)
    set_target_properties(gsb_vit PROPERTIES LINK_DEPENDS ${map})
  endif()
endif()

set(package ${CMAKE_INSTALL_LIBDIR}/cmake/gsb_vit)
target_include_directories(gsb_vit INTERFACE $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
install(TARGETS gsb_vit EXPORT gsb_vit-targets
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(FILES ${CMAKE_CURRENT_LIST_DIR}/../native/include/gsb_vit.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT gsb_vit-targets NAMESPACE gsb_vit:: DESTINATION ${package})
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/gsb_vit-config.cmake.in gsb_vit-config.cmake
  INSTALL_DESTINATION ${package})
# Before 1.0 a minor version may change the API.
write_basic_package_version_file(gsb_vit-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/gsb_vit-config.cmake ${CMAKE_CURRENT_BINARY_DIR}/gsb_vit-config-version.cmake
  DESTINATION ${package})

# The prefix is found from the file's own place, so that the folder may be moved.
file(RELATIVE_PATH to_prefix ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_PREFIX})
string(REGEX REPLACE "/$" "" to_prefix "${to_prefix}")
set(libraries "-lm -pthread -lstdc++")
if(GSB_VIT_SHARED)
  set(public_libraries "")
  set(private_libraries ${libraries})
else()  # the archive alone is no use without them
  set(public_libraries " ${libraries}")
  set(private_libraries "")
endif()
configure_file(${CMAKE_CURRENT_LIST_DIR}/gsb_vit.pc.in gsb_vit.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/gsb_vit.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
